"""Circuits on live traffic: from rows on the wire to what a scrape shows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes.cli import main as probes
from probes.registry import load_all
from sidecar.circuits.record import read_record
from sidecar.cli import main as sidecar
from sidecar.clock import ManualClock
from sidecar.snapshot import Rung
from sidecar.words import in_words
from tests.circuits.served import (
    ALL,
    CIRCUIT,
    Live,
    archived,
    bets_of,
    engaged_rows,
    live,
    mixed,
    not_a_number,
    project,
    step,
    write_validated,
)
from tests.circuits.small import LAYER, MLP, write_circuit
from tests.hot import Hot
from tests.probes.builders import MODEL, write_artifact


@pytest.fixture
def artifacts(home: Path) -> Path:
    write_circuit(home / "artifacts" / "going_on")
    return home / "artifacts"


@pytest.fixture
def one(home: Path, artifacts: Path) -> Iterator[Live]:
    with live(home, artifacts, {"circuits.requests_are_sessions": True}) as made:
        yield made


def test_the_engaged_share_of_live_tokens_is_shown_once_their_tick_has_closed(one: Live) -> None:
    one.send(step(engaged_rows(12, engaged=True), [4, 8]))
    one.send(step(engaged_rows(30, engaged=False), [30]))
    assert one.value("circuit_tokens_total", **ALL) == 0
    one.tick()
    assert one.value("circuit_tokens_total", **ALL) == 42
    assert one.value("circuit_tokens_engaged_total", **ALL) == 12
    assert one.value("circuit_score_ratio_bucket", le="0.5", **CIRCUIT) == 30
    assert one.value("circuit_score_ratio_count", **CIRCUIT) == 42
    assert one.value("circuit_session_engaged_ratio_bucket", le="0.0", **ALL) == 1
    assert one.value("circuit_session_engaged_ratio_count", **ALL) == 3
    assert one.value("circuit_state", state="draft", **CIRCUIT) == 1


def test_a_session_bets_once_and_a_request_of_no_session_never(home: Path, artifacts: Path) -> None:
    with live(home, artifacts) as one:
        one.send(step(engaged_rows(12, engaged=True), [4, 8], session_id_hashes=["same", "same"]))
        one.send(step(engaged_rows(6, engaged=True), [6], session_id_hashes=["same"]))
        one.send(step(engaged_rows(5, engaged=True), [5]))
        one.tick()
        assert one.value("circuit_tokens_total", **ALL) == 23
        assert one.value("circuit_session_engaged_ratio_count", **ALL) == 1
        assert one.value("circuits_session_rows_unused_total", reason="unnamed") == 5


def test_where_no_request_names_a_session_the_status_and_the_log_say_so_once_and_how_it_is_mended(
    home: Path, artifacts: Path
) -> None:
    lines: list[str] = []
    with live(home, artifacts, log=lines.append) as one:
        for _ in range(3):
            one.send(step(engaged_rows(8, engaged=True), [8]))
            one.tick()
            one.sidecar.keeper.look()
        (line,) = [line for line in in_words(one.sidecar.status()) if line.startswith("circuit going_on")]
        assert "no request names a session, so that nobody bets" in line
        assert "circuits.requests_are_sessions=true" in line
        (said,) = [line for line in lines if "no_request_names_a_session" in line]
        assert "circuits.requests_are_sessions=true" in said
        one.send(step(engaged_rows(2, engaged=True), [2], session_id_hashes=["begun"]))
        one.tick()
        assert not any("names a session" in line for line in in_words(one.sidecar.status()))


@pytest.mark.parametrize("named", [True, False])
def test_sessions_that_are_named_or_need_no_name_are_never_said_to_be_missing(
    home: Path, artifacts: Path, named: bool
) -> None:
    lines: list[str] = []
    with live(home, artifacts, {"circuits.requests_are_sessions": not named}, log=lines.append) as one:
        names = {"session_id_hashes": ["begun", ""]} if named else {}
        one.send(step(engaged_rows(3, engaged=True), [1, 2], **names))
        one.tick()
        one.sidecar.keeper.look()
        assert not any("names a session" in line for line in in_words(one.sidecar.status()))
    assert not any("no_request_names_a_session" in line for line in lines)


def test_rows_of_canaries_and_of_adapters_are_no_traffic(one: Live) -> None:
    one.send(step(engaged_rows(8, engaged=True), [4, 4], canaries=[True, False]))
    one.send(step(engaged_rows(8, engaged=True), [4, 4], adapters=["", "lora"]))
    one.send(step(engaged_rows(4, engaged=True), [4], canaries=[True]))
    one.tick()
    assert one.value("circuit_tokens_total", **ALL) == 8
    assert one.value("circuit_session_engaged_ratio_count", **ALL) == 2


def test_the_first_positions_are_left_out_and_counted(one: Live) -> None:
    one.send(step(engaged_rows(10, engaged=True), [10], first=0))
    one.tick()
    assert one.value("circuit_tokens_total", **ALL) == 6
    assert one.value("circuit_tokens_excluded_total", reason="sink", **CIRCUIT) == 4


def test_routes_that_are_named_are_told_apart_and_all_others_are_one(home: Path, artifacts: Path) -> None:
    routes = ["chat", "code", "chat", "poem", "prose"]
    with live(home, artifacts, {"circuits.slices": ["chat", "code"]}) as one:
        one.send(step(engaged_rows(20, engaged=True), [4] * 5, routes=routes))
        one.tick()
        found = {name: one.value("circuit_tokens_total", slice=name, **CIRCUIT) for name in ("chat", "code", "other")}
        assert found == {"chat": 8, "code": 4, "other": 8}


def test_a_step_in_which_one_of_its_tap_points_is_missing_is_not_read_by_the_circuit(one: Live) -> None:
    states = engaged_rows(6, engaged=True)
    one.send(step({LAYER: states[LAYER]}, [6]))
    one.tick()
    assert one.value("circuit_tokens_total", **ALL) == 0
    assert one.value("circuit_tokens_excluded_total", reason="non_finite", **CIRCUIT) == 0


def test_a_nan_costs_its_own_step_and_an_overflow_its_own_row(one: Live) -> None:
    bad = engaged_rows(6, engaged=True)
    bad[LAYER][2, 3] = np.nan
    refused = one.client.observe(step(bad, [6]))
    assert refused.field == "step_batch.tensors[0].raw"
    huge = engaged_rows(6, engaged=True)
    huge[MLP][2] = 3e38
    one.send(step(huge, [6]))
    one.tick()
    assert one.value("circuit_tokens_total", **ALL) == 5
    assert one.value("circuit_tokens_engaged_total", **ALL) == 5
    assert one.value("circuit_tokens_excluded_total", reason="non_finite", **CIRCUIT) == 1


def test_circuits_on_another_model_are_stale_or_refused_and_say_why(home: Path) -> None:
    write_validated(home / "artifacts" / "going_on")
    with live(home, home / "artifacts", model=replace(MODEL, weights_digest="d" * 64)) as one:
        assert one.value("circuit_state", state="stale", **CIRCUIT) == 1
    with live(home, home / "artifacts", model=replace(MODEL, layers=9)) as one:
        assert one.value("artifacts", evidence="refused") == 1
        assert not any("circuit_tokens_total" in name for name in one.client.series())


def test_a_projecting_tap_gives_circuits_what_a_raw_one_does(home: Path, artifacts: Path) -> None:
    pages = []
    for projected in (False, True):
        with live(home, artifacts, {"circuits.requests_are_sessions": True}) as one:
            plan = one.sidecar.plans.plan
            assert plan is not None
            draws = np.random.default_rng(3)
            for _ in range(3):
                batch = mixed(draws, 0.5)
                one.send(project(batch, plan) if projected else batch)
            one.tick()
            pages.append({k: v for k, v in one.client.series().items() if "_circuit_" in k})
    assert pages[0] == pages[1]


def test_below_the_top_of_the_ladder_no_circuit_is_sketched_and_what_is_left_out_is_counted(artifacts: Path) -> None:
    clock = ManualClock()
    hot = Hot(clock, artifacts=load_all(artifacts, limit=9))
    hot.register(model=MODEL)
    while hot.pipeline.ladder.rung is Rung.FULL:
        batch = step(engaged_rows(6, engaged=True), [6])
        batch.taken_ns = clock.unix_ns()
        hot.submit(batch, waited_s=1.0)
        hot.pipeline.settle()
        clock.advance(0.3)
    before = hot.snapshot().circuits
    batch = step(engaged_rows(6, engaged=True), [6])
    batch.taken_ns = clock.unix_ns()
    hot.submit(batch)
    assert hot.snapshot().circuits.tokens_left_out == before.tokens_left_out + 6


def test_traffic_that_stops_using_a_circuit_alarms_once_and_the_alarm_is_replayed_bit_by_bit(
    told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        assert one.value("circuit_state", state="validated", **CIRCUIT) == 1
        one.traffic(20, 0.5, seed=7)
        assert one.value("circuit_evidence_threshold_ratio", **ALL) < 0.6
        one.traffic(12, 0.0, seed=8)
        one.sidecar.keeper.look()
        alarm = {"cause": "unknown", "leans": "less", "severity": "page"}
        assert one.value("circuit_alarm", **ALL, **alarm) == 1
        assert one.value("circuit_alarms_total", cause="unknown", **ALL) == 1
        assert one.value("circuits_alarm_records_total", outcome="written") == 1
    (path,) = (told / "archive").glob("*.json")
    record = read_record(path)
    assert (record.diagnosis, record.leans, record.pages) == ("unknown", "less", True)
    baseline = ["--baseline", str(told / "artifacts" / "baseline")]
    assert sidecar(["replay", str(path), *baseline]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_with_a_nan_in_every_tick_neither_fires_nor_silences_nor_delays_an_alarm(
    told: Path, share: float
) -> None:
    records = []
    for broken in (False, True):
        flags = archived(told) | {"circuits.archive": str(told / f"broken-{broken}")}
        with live(told, told / "artifacts", flags) as one:
            one.traffic(12, share, seed=8, also=(lambda: one.refused(not_a_number())) if broken else None)
            one.sidecar.keeper.look()
        records.append([read_record(path) for path in (told / f"broken-{broken}").glob("*.json")])
    sound, with_nans = records
    assert len(sound) == len(with_nans) == (share == 0.0)
    for before, after in zip(sound, with_nans, strict=True):
        assert (after.tick, after.log_e, after.trace) == (before.tick, before.log_e, before.trace)
        assert (before.diagnosis, after.diagnosis) == ("unknown", "data")


def test_sound_traffic_gives_no_alarm_and_its_archive_goes_on(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        one.traffic(60, 0.5, seed=11)
        assert one.value("circuit_alarms_total", cause="unknown", **ALL) == 0
        assert one.value("circuits_ticks_total", outcome="closed") == 60
        one.sidecar.keeper.look()
    assert len(list((told / "archive").glob("*.json"))) == 0


def test_the_alarm_after_the_cool_down_is_replayed_too(told: Path) -> None:
    """What came while the detector cooled is no evidence, its last tick included."""
    with live(told, told / "artifacts", archived(told) | {"circuits.cool_down": 5}) as one:
        one.traffic(30, 0.0, seed=5)
        one.sidecar.keeper.look()
        assert one.value("circuit_alarms_total", cause="unknown", **ALL) >= 2
    paths = sorted((told / "archive").glob("*.json"))
    assert len(paths) >= 2
    assert [sidecar(["replay", str(path)]) for path in paths] == [0] * len(paths)
    assert read_record(paths[1]).previous == read_record(paths[0]).content_digest


def test_a_file_of_the_archive_holds_so_many_ticks_and_the_newest_alarm_is_told_after_it_has_cooled(told: Path) -> None:
    for path in (told / "archive").glob("*.parquet"):
        path.unlink()
    settings = archived(told) | {"circuits.file_ticks": 4, "circuits.cool_down": 5}
    with live(told, told / "artifacts", settings) as one:
        one.traffic(3, 0.5)
        one.sidecar.keeper.look()
        assert not list((told / "archive").glob("*.parquet"))
        one.traffic(1, 0.5)
        one.sidecar.keeper.look()
        assert len(list((told / "archive").glob("*.parquet"))) == 1
        one.traffic(12, 0.0, seed=5)
        one.sidecar.keeper.look()
        (newest,) = one.sidecar.keeper.snapshot().newest
        assert newest.at_s % 60 == 0
        assert abs(newest.at_s - one.clock.unix_ns() / 1e9) < 12 * 60
        one.traffic(12, 0.5, seed=6)
        one.sidecar.keeper.look()
        kept = one.sidecar.keeper.snapshot()
        assert (kept.alarms, kept.newest) == ((), (newest,))
        shown = one.sidecar.status().circuits[0].alarms
        assert [(alarm.at_s, alarm.open) for alarm in shown] == [(newest.at_s, False)]


def test_a_probe_that_is_added_costs_a_circuit_neither_its_sessions_nor_its_evidence(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        one.send(step(engaged_rows(2, engaged=True), [2], session_id_hashes=["begun"]))
        one.traffic(1, 0.0)
        before = one.value("circuit_evidence_log", **ALL)
        assert before > 0
        bets = one.value("circuit_session_engaged_ratio_count", **ALL)
        write_artifact(told / "artifacts", "a_probe")
        deadline(lambda: one.value("plan_generation") == 2)
        assert one.value("circuit_evidence_log", **ALL) == before
        one.send(step(engaged_rows(2, engaged=True), [2], session_id_hashes=["begun"]))
        one.tick()
        assert one.value("circuit_session_engaged_ratio_count", **ALL) == bets + 1
        assert one.value("circuit_tokens_total", **ALL) == 2 * 8 * 4 + 4


def test_a_circuit_that_comes_or_goes_has_no_session_bet_again_in_one_that_stays(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        one.send(step(engaged_rows(6, engaged=True), [4, 2], session_id_hashes=["has-bet", "begun"]))
        one.tick()
        before = bets_of(one, "going_on")
        write_circuit(told / "artifacts" / "other", name="other")
        deadline(lambda: one.value("plan_generation") == 2)
        one.send(step(engaged_rows(5, engaged=True), [3, 2], session_id_hashes=["has-bet", "begun"]))
        one.tick(120)
        assert bets_of(one, "going_on") == before + 1  # of the one that had begun
        assert bets_of(one, "other") == 0  # both began there at zero
        one.send(step(engaged_rows(2, engaged=True), [1, 1], session_id_hashes=["has-bet", "begun"]))
        one.tick()
        assert bets_of(one, "other") == 1
        shutil.rmtree(told / "artifacts" / "other")
        deadline(lambda: one.value("plan_generation") == 3)
        one.send(step(engaged_rows(8, engaged=True), [4, 4], session_id_hashes=["has-bet", "begun"]))
        one.tick(120)
        assert bets_of(one, "going_on") == before + 1


def test_another_baseline_begins_its_evidence_anew(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        one.traffic(1, 0.0)
        assert one.value("circuit_evidence_log", **ALL) > 0
        (sketch, *_) = sorted(str(path) for path in (told / "archive").glob("*.parquet"))
        shutil.rmtree(told / "artifacts" / "baseline")
        deadline(lambda: one.value("plan_generation") == 2)
        assert one.value("circuit_state", state="learning", **CIRCUIT) == 1
        again = ["--one-bucket", "--at-least", "0.06", "--out", str(told / "artifacts" / "baseline")]
        assert probes(["baseline", "fit", sketch, *again]) == 0
        deadline(lambda: one.value("plan_generation") >= 3)
        assert one.value("circuit_evidence_log", **ALL) == 0


def test_two_baselines_of_one_circuit_are_refused_and_the_old_plan_serves_on(told: Path) -> None:
    with live(told, told / "artifacts", archived(told)) as one:
        shutil.copytree(told / "artifacts" / "baseline", told / "artifacts" / "other")
        deadline(lambda: one.value("artifact_reloads_total", outcome="refused") >= 1)
        assert one.value("circuit_state", state="validated", **CIRCUIT) == 1


def test_an_archive_that_cannot_be_written_costs_rows_and_nothing_else(told: Path) -> None:
    (told / "file").touch()
    with live(told, told / "artifacts", archived(told) | {"circuits.archive": str(told / "file")}) as one:
        one.traffic(20, 0.0)
        one.sidecar.keeper.look()
        assert one.value("circuit_alarms_total", cause="unknown", **ALL) == 1
        assert one.value("circuits_alarm_records_total", outcome="lost") == 1
        assert one.value("circuits_archive_rows_total", outcome="lost") > 0
        assert one.value("circuit_tokens_total", **ALL) == 20 * 2 * 8 * 4


def test_bets_are_split_over_replicas_by_a_key_and_each_session_bets_on_one(home: Path, artifacts: Path) -> None:
    (home / "key").write_text("a secret")
    bets = []
    names = [f"session-{number}" for number in range(24)]
    for replica in (0, 1):
        flags = {"circuits.replicas": 2, "circuits.replica": replica, "circuits.key_file": str(home / "key")}
        with live(home, artifacts, flags) as one:
            for at in range(0, 24, 8):
                one.send(step(engaged_rows(32, engaged=True), [4] * 8, session_id_hashes=names[at : at + 8]))
            one.tick()
            bets.append(one.value("circuit_session_engaged_ratio_count", **ALL))
            assert one.value("circuits_session_rows_unused_total", reason="elsewhere") == (24 - bets[-1]) * 4
    assert sum(bets) == 24
    assert all(bets)


def deadline(ready: Callable[[], bool]) -> None:
    """The reload is a thread of its own, which looks every 50 ms."""
    ends = time.monotonic() + 10.0
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.02)
