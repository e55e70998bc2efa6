"""A clock that was ahead, or is set back: what it costs a sidecar's circuits, and what it does not."""

from __future__ import annotations

from pathlib import Path

from sidecar.circuits.archive import read_archive
from sidecar.cli import main as sidecar
from tests.circuits.served import ALL, Live, archived, bets_of, engaged_rows, live, step

DAY_NS = 86_400 * 10**9


def said_of_ticks(one: Live) -> dict[str, float]:
    return {
        name: one.value("circuits_ticks_total", outcome=name) for name in ("closed", "repeated", "late", "set_back")
    }


def test_a_clock_that_was_a_day_ahead_for_one_reading_costs_evidence_and_not_the_day(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        one.traffic(2, 0.0)
        assert one.value("circuit_evidence_log", **ALL) > 0
        one.send(step(engaged_rows(4, engaged=True), [4], session_id_hashes=["has-bet"]))
        one.clock.epoch_ns += DAY_NS
        one.client.series()
        one.clock.epoch_ns -= DAY_NS
        one.client.series()
        assert one.value("circuit_evidence_log", **ALL) == 0
        assert said_of_ticks(one) == {"closed": 3, "repeated": 0, "late": 0, "set_back": 1}
        tokens, bets = one.value("circuit_tokens_total", **ALL), bets_of(one, "going_on")
        one.send(step(engaged_rows(4, engaged=True), [4], session_id_hashes=["has-bet"]))
        one.tick()  # of which a part had closed: what came in the rest counts with the next
        assert said_of_ticks(one) == {"closed": 3, "repeated": 1, "late": 0, "set_back": 1}
        one.tick()
        assert one.value("circuit_tokens_total", **ALL) == tokens + 4
        assert bets_of(one, "going_on") == bets
        one.traffic(12, 0.0, seed=8)
        one.sidecar.keeper.look()
        assert one.value("circuits_alarm_records_total", outcome="written") == 1
    (path,) = (told / "archive").glob("*.json")
    assert sidecar(["replay", str(path), "--baseline", str(told / "artifacts" / "baseline")]) == 0


def test_ticks_that_closed_while_the_clock_was_ahead_are_no_evidence_when_they_come(told: Path) -> None:
    for path in (told / "archive").glob("*.parquet"):
        path.unlink()
    with live(told, told / "artifacts", archived(told)) as one:
        one.traffic(3, 0.5)
        one.clock.epoch_ns += 600 * 10**9
        one.traffic(4, 0.5, seed=1)
        one.clock.epoch_ns -= 600 * 10**9
        one.traffic(16, 0.5, seed=2)
        assert said_of_ticks(one) == {"closed": 20, "repeated": 4, "late": 0, "set_back": 1}
        assert one.value("circuit_tokens_total", **ALL) == 23 * 2 * 8 * 4
        one.traffic(12, 0.0, seed=8)
        one.sidecar.keeper.look()
        assert one.value("circuits_alarm_records_total", outcome="written") == 1
    rows = [row for path in (told / "archive").glob("*.parquet") for row in read_archive(path)]
    assert len({row.key for row in rows}) == len(rows)
    (path,) = (told / "archive").glob("*.json")
    assert sidecar(["replay", str(path), "--baseline", str(told / "artifacts" / "baseline")]) == 0


def test_a_clock_that_is_set_back_by_three_ticks_makes_one_tick_longer_and_costs_no_evidence(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        one.traffic(2, 0.0)
        before = one.value("circuit_evidence_log", **ALL)
        one.clock.epoch_ns -= 180 * 10**9
        one.client.series()
        assert one.value("circuit_evidence_log", **ALL) == before > 0
        one.traffic(4, 0.5)
        assert said_of_ticks(one) == {"closed": 3, "repeated": 0, "late": 0, "set_back": 0}
