"""A restart hides no fault: evidence, bets, cool-down and open alarms go on, and alarms after it are replayed from the archive."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.circuits.baseline import load_baseline
from probes.circuits.baseline_fit import Options, fit_baseline
from probes.cli import main as probes
from sidecar.circuits.archive import read_archive
from sidecar.circuits.fleet import detect
from sidecar.circuits.record import read_record
from sidecar.circuits.watch import Settings, Watch
from sidecar.cli import main as sidecar
from sidecar.clock import ManualClock
from sidecar.live.remembered import from_bytes
from sidecar.live.state_file import StateFile
from tests.circuits.served import Live, clock_at_an_hour, engaged_rows, live, step, write_validated
from tests.circuits.small import write_circuit
from tests.faults.process import Process
from tests.probes.builders import MODEL
from tests.service.client import Client
from tests.service_fixtures import private_folder
from tests.waiting import until

CIRCUIT = {"circuit": "going_on"}
ALL = {**CIRCUIT, "slice": "all"}
EX_SOFTWARE = 70


@pytest.fixture(scope="module")
def learned() -> Iterator[Path]:
    """A folder of artifacts with a validated circuit and the baseline of half an hour in which half of the sessions use it."""
    with private_folder() as home:
        write_validated(home / "artifacts" / "going_on")
        with live(home, home / "artifacts", settings(home)) as one:
            one.traffic(30, 0.5)
        fit_baseline([home / "archive"], home / "artifacts" / "baseline", Options(buckets=1, armed=True))
        yield home / "artifacts"


@pytest.fixture
def home(learned: Path) -> Iterator[Path]:
    with private_folder() as made:
        shutil.copytree(learned, made / "artifacts")
        yield made


def settings(home: Path, **more: object) -> dict[str, Any]:
    return {"circuits.archive": str(home / "archive"), "circuits.requests_are_sessions": True, **more}


@contextmanager
def serving(home: Path, clock: ManualClock, **more: object) -> Iterator[Live]:
    flags = settings(home) | more
    with live(home, home / "artifacts", flags, clock=clock) as one:
        yield one


def evidence(one: Live) -> float:
    return one.value("circuit_evidence_log", **ALL)


def gone(one: Live, ticks: int, sessions: int = 2) -> None:
    """Ticks in which no session uses the circuit."""
    for _ in range(ticks):
        one.send(step(engaged_rows(4 * sessions, engaged=False), [4] * sessions))
        one.tick()


def begins_anew(home: Path, clock: ManualClock, **more: object) -> bool:
    with serving(home, clock, **more) as one:
        return evidence(one) == 0


# an orderly restart


def test_evidence_goes_on_bit_by_bit_as_if_there_had_been_no_restart(home: Path) -> None:
    """Against a run that is not disturbed, with a silent tick in the place of the restart."""
    clock, found = clock_at_an_hour(), []
    with private_folder() as other, serving(home, clock) as one:
        shutil.copytree(home / "artifacts", other / "artifacts")
        gone(one, 3)
        before = evidence(one)
        undisturbed = clock_at_an_hour()
        with serving(other, undisturbed) as two:
            gone(two, 3)
            two.tick()
            gone(two, 2)
            found.append(evidence(two))
    clock.advance(60)
    with serving(home, clock) as again:
        assert evidence(again) == before > 0
        gone(again, 2)
        assert evidence(again) == found[0] > before


def test_what_comes_in_the_tick_that_an_orderly_end_has_closed_counts_with_the_next(home: Path) -> None:
    clock = clock_at_an_hour()
    with serving(home, clock) as one:
        one.send(step(engaged_rows(8, engaged=False), [4, 4]))
    with serving(home, clock) as again:
        again.send(step(engaged_rows(8, engaged=False), [4, 4]))
        again.tick()
        assert again.value("circuit_tokens_total", **ALL) == 0
        again.tick()
        assert again.value("circuit_tokens_total", **ALL) == 8
        assert again.value("circuits_ticks_total", outcome="repeated") == 0
    ticks = [row.key.tick for path in (home / "archive").glob("*.parquet") for row in read_archive(path)]
    assert max(ticks) == min(ticks) + 1


def test_an_alarm_that_comes_after_a_restart_is_replayed_from_before_it(home: Path) -> None:
    clock = clock_at_an_hour()
    with serving(home, clock) as one:
        gone(one, 4, sessions=4)
        clock.advance(60)
        restarted = clock.unix_ns() // 10**9 // 60
    clock.advance(60)
    with serving(home, clock) as again:
        gone(again, 8, sessions=4)
        again.sidecar.keeper.look()
        assert again.value("circuits_alarm_records_total", outcome="written") == 1
    (path,) = (home / "archive").glob("*.json")
    ticks = [one.tick for one in read_record(path).trace]
    assert ticks[0] < restarted < ticks[-1]
    assert sidecar(["replay", str(path), "--baseline", str(home / "artifacts" / "baseline")]) == 0


def test_a_session_that_bet_before_a_restart_bets_no_more_and_one_that_had_begun_goes_on(home: Path) -> None:
    clock = clock_at_an_hour()
    with serving(home, clock) as one:
        names = {"session_id_hashes": ["has-bet", "has-bet-too", "has-begun"]}
        one.send(step(engaged_rows(10, engaged=True), [4, 4, 2], **names))
        one.tick()
        assert one.value("circuit_session_engaged_ratio_count", **ALL) == 2
    with serving(home, clock) as again:
        names = {"session_id_hashes": ["has-bet", "has-bet-too", "has-begun", "new"]}
        again.send(step(engaged_rows(14, engaged=True), [4, 4, 2, 4], **names))
        again.tick(120)
        assert again.value("circuit_session_engaged_ratio_count", **ALL) == 2  # the one that had begun, and the new one


def test_a_session_that_bet_before_a_restart_with_other_circuits_bets_no_more_in_the_one_that_stays(home: Path) -> None:
    clock, names = clock_at_an_hour(), {"session_id_hashes": ["has-bet", "has-begun"]}
    count = "circuit_session_engaged_ratio_count"
    with serving(home, clock) as one:
        gone(one, 3)
        before = evidence(one)
        one.send(step(engaged_rows(6, engaged=True), [4, 2], **names))
        one.tick()
        assert one.value(count, **ALL) == 3 * 2 + 1
    write_circuit(home / "artifacts" / "a_new_one", name="a_new_one")
    with serving(home, clock) as again:
        assert 0 < evidence(again) <= before
        again.send(step(engaged_rows(6, engaged=True), [4, 2], **names))
        again.tick(120)
        assert again.value(count, **ALL) == 1  # the one that had begun
        assert again.value(count, circuit="a_new_one", slice="all") == 1  # the one of which four tokens came
    shutil.rmtree(home / "artifacts" / "a_new_one")
    with serving(home, clock) as last:
        last.send(step(engaged_rows(8, engaged=True), [4, 4], **names))
        last.tick(120)
        assert last.value(count, **ALL) == 0


def test_the_cool_down_goes_on_and_the_alarm_is_shown_until_it_is_over(home: Path) -> None:
    clock, cool = clock_at_an_hour(), {"circuits.cool_down": 10}
    alarm = {"cause": "unknown", "leans": "less", "severity": "page"}
    with serving(home, clock, **cool) as one:
        while not one.value("circuit_alarms_total", cause="unknown", **ALL):
            gone(one, 1)
            one.sidecar.keeper.look()
        assert one.value("circuit_alarm", **ALL, **alarm) == 1
    (record,) = (home / "archive").glob("*.json")
    with serving(home, clock, **cool) as again:
        again.sidecar.keeper.look()
        assert again.value("circuit_alarm", **ALL, **alarm) == 1
        (told,) = again.sidecar.keeper.snapshot().alarms
        assert told.record == record.name
        gone(again, 9)
        assert evidence(again) == 0
        gone(again, 3)
        again.sidecar.keeper.look()
        assert "circuit_alarm{" not in "".join(again.client.series())
        assert evidence(again) > 0
        assert again.value("circuit_alarms_total", cause="unknown", **ALL) == 0  # none since the start


def test_an_alarm_that_waited_for_its_diagnosis_gets_it_after_the_restart(home: Path) -> None:
    clock = clock_at_an_hour()
    (home / "token").write_text("a-token")
    asked = {"canary.url": "http://127.0.0.1:9", "canary.token_file": str(home / "token"), "canary.every_s": 1e6}
    asked |= {"circuits.diagnose_s": 1e6}
    with serving(home, clock, **asked) as one:
        one.sidecar.keeper.canaries.rounds = -(10**6)  # type: ignore[misc]  # however many fail at once: none answers
        gone(one, 12, sessions=4)
        assert one.sidecar.keeper.snapshot().alarms == ()
        assert list((home / "archive").glob("*.json")) == []
    with serving(home, clock) as again:
        again.sidecar.keeper.look()
        assert again.value("circuit_alarms_total", cause="unknown", **ALL) == 1
    (path,) = (home / "archive").glob("*.json")
    assert sidecar(["replay", str(path)]) == 0


@pytest.mark.parametrize(
    "flaw", ["too long", "never", "clock set back", "another baseline", "other ticks", "damaged", "unsound", "none"]
)
def test_detectors_begin_anew_where_they_could_not_soundly_go_on(home: Path, flaw: str) -> None:
    clock, more = clock_at_an_hour(), dict[str, object]()
    with serving(home, clock) as one:
        gone(one, 3)
        assert evidence(one) > 0
    state = next((home / "run").glob("*.circuits"))
    assert state.stat().st_mode & 0o077 == 0
    if flaw == "too long":
        clock.advance(62 * 60)
    elif flaw == "never":
        more = {"circuits.resume_ticks": 0}
    elif flaw == "clock set back":
        clock.advance(-3600)
    elif flaw == "another baseline":
        shutil.rmtree(home / "artifacts" / "baseline")
        sketches = [str(path) for path in (home / "archive").glob("*.parquet")]
        again = ["--one-bucket", "--at-least", "0.06", "--out", str(home / "artifacts" / "baseline")]
        assert probes(["baseline", "fit", *sketches, *again]) == 0
    elif flaw == "other ticks":
        more = {"circuits.tick_s": 30}
    elif flaw == "damaged":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    elif flaw == "unsound":  # whole, and of a version that knew less
        kept = StateFile(state).read()
        assert kept is not None
        known = from_bytes(kept.worker)
        del known.watch["detectors"][0]["marks"]
        StateFile(state).write(replace(kept, worker=known.to_bytes()))
    elif flaw == "none":
        state.unlink()
    assert begins_anew(home, clock, **more)


def test_another_model_or_spec_or_baseline_is_not_gone_on_with_and_the_same_is(home: Path) -> None:
    with serving(home, clock_at_an_hour()) as one:
        gone(one, 3)
    kept = StateFile(home / "run" / "sidecar.sock.circuits").read()
    baseline = load_baseline(home / "artifacts" / "baseline", root=home / "artifacts" / "baseline")
    assert kept is not None
    known, digests = from_bytes(kept.worker), {"going_on": baseline.digest}
    (watched,) = baseline.watched
    for changes in ({"model_hash": "x" * 64}, {"spec_hash": "x" * 64}):
        assert Watch([replace(watched, **changes)], 60).restore(known.held_against(digests)) == 0
    assert Watch([watched], 60).restore(known.held_against({"going_on": "x" * 64})) == 0
    assert Watch([watched], 60).restore(known.held_against({})) == 0
    again = Watch([watched], 60)
    assert again.restore(known.held_against(digests)) == 1
    assert again.evidence[0] > 0


def test_a_gap_that_is_short_enough_is_gone_over_and_counted(home: Path) -> None:
    clock = clock_at_an_hour()
    with serving(home, clock) as one:
        gone(one, 3)
        before = evidence(one)
    clock.advance(60 * 60)
    with serving(home, clock) as again:
        assert evidence(again) == before
        gone(again, 1)
        assert evidence(again) > before
        assert again.value("circuits_ticks_total", outcome="missed") == 59


def test_a_circuit_that_is_added_in_the_middle_of_a_tick_costs_no_other_ones_alarm_its_record(home: Path) -> None:
    """The tick is closed early and what is left of it counts with the next: no tick of an archive is evidence by half."""
    clock = clock_at_an_hour()
    with serving(home, clock) as one:
        gone(one, 4, sessions=4)
        before = evidence(one)
        one.send(step(engaged_rows(8, engaged=False), [4, 4]))
        write_circuit(home / "artifacts" / "other", name="other")
        until(lambda: one.value("plan_generation") == 2)
        assert evidence(one) > before
        gone(one, 8, sessions=4)
        one.sidecar.keeper.look()
        assert one.value("circuits_alarm_records_total", outcome="written") == 1
        assert one.value("circuits_ticks_total", outcome="repeated") == 0
    (path,) = (home / "archive").glob("*.json")
    assert sidecar(["replay", str(path)]) == 0


# a worker, or a control process, that is killed


FLAGS = {"circuits.tick_s": 1, "circuits.requests_are_sessions": "true", "limits.clock_skew_s": 1e9}


@contextmanager
def process(home: Path) -> Iterator[tuple[Process, Client]]:
    told = FLAGS | {"circuits.archive": home / "archive"}
    flags = [part for name, value in told.items() for part in ("--set", f"{name}={value}")]
    with Process(home, home / "artifacts", *flags) as served, Client(served) as client:
        client.register(MODEL)
        yield served, client


def shown(client: Client, name: str) -> float:
    return float(client.series().get(f'stethoscope_{name}{{circuit="going_on",slice="all"}}', "nan"))


def a_tick_of_disuse(client: Client) -> None:
    """Five sessions, which do not use the circuit; until their tick has closed."""
    before = shown(client, "circuit_tokens_total")
    batch = step(engaged_rows(20, engaged=False), [4] * 5)
    batch.taken_ns = time.time_ns()
    assert client.observe(batch).result is not None
    until(lambda: shown(client, "circuit_tokens_total") > before)


@pytest.mark.process
@pytest.mark.parametrize("victim", ["worker", "control process"])
def test_a_kill_costs_the_evidence_no_more_than_its_tick_and_the_alarm_after_it_is_replayed(
    home: Path, victim: str
) -> None:
    with process(home) as (first, client):
        while shown(client, "circuit_evidence_log") < 4:
            a_tick_of_disuse(client)
        state = home / "run" / "sidecar.sock.circuits"
        until(lambda: _log_e(state) == pytest.approx(shown(client, "circuit_evidence_log"), abs=1e-6))
        known, killed = shown(client, "circuit_evidence_log"), int(time.time())
        os.kill(first.worker_pid if victim == "worker" else first.pid, signal.SIGKILL)
        assert first.wait() == (EX_SOFTWARE if victim == "worker" else -signal.SIGKILL)
    with process(home) as (second, client):
        assert second.event("detectors_resumed")["detectors"] == 1
        assert shown(client, "circuit_evidence_log") == known
        until(lambda: any((home / "archive").glob("*.json")) or a_tick_of_disuse(client), within_s=60)
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
    (path,) = (home / "archive").glob("*.json")
    record = read_record(path)
    baseline = home / "artifacts" / "baseline"
    assert sidecar(["replay", str(path), "--baseline", str(baseline)]) == 0
    if victim == "worker":
        assert record.trace[0].tick <= killed < record.tick
        # One that was never disturbed, over everything that is archived: what the kill cost is in no file.
        rows = [row for file in (home / "archive").glob("*.parquet") for row in read_archive(file)]
        whole = detect(rows, load_baseline(baseline, root=baseline).watched, 1, Settings())
        assert [(one.tick, one.log_e) for one in whole.alarms[:1]] == [(record.tick, record.log_e)]
    else:
        assert (
            record.trace[0].tick >= killed
        )  # the archive of before is gone with the process: so the replay begins after it
        assert max(record.start) / (1 << 24) > 4


def _log_e(state: Path) -> float:
    from sidecar.circuits.detector import UNIT, log_e

    kept = StateFile(state).read()
    if kept is None:
        return 0.0
    (one,) = from_bytes(kept.worker).watch["detectors"]
    return int(log_e(np.array(one["log_m"]))) / UNIT
