"""Shards read what one process would have read: the same bits, the same counts, and nothing is lost when one of them is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.stethoscope.v1 import ingest_pb2
from sidecar import published
from sidecar.clock import Clock, ManualClock, SystemClock
from sidecar.config import Config
from sidecar.errors import ConfigError, DropReason, Rejected, RejectReason
from sidecar.log import Log
from sidecar.outcome import Arrival, Result
from sidecar.pipeline import Pipeline
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Plan
from sidecar.reading.read import read
from sidecar.reading.shed import Shed
from sidecar.service import Sidecar
from sidecar.snapshot import ShardOutcome, ShardState
from sidecar.types import Action, BatchId, ElementType, EngineId, StepBatch, TapLedgerCounts, TapPoint, TrafficReport
from sidecar.worker.shards import Shards, deal
from sidecar.worker.spawn import spawn
from tests.builders import wire_batch
from tests.faults.process import Process
from tests.reading.plans import batch_of, model_of, plan_of, tap_plan, tensor_of
from tests.service.client import Client

pytestmark = pytest.mark.process

WIDTH = 64
TAPS = tuple(TapPoint(layer) for layer in range(6))
COLUMNS = (9, 2, 5, 3, 7, 4)
UNREAD = TapPoint(7)  # of the model, and no plan reads it
ENGINE = EngineId("e")
_generations = count(1)
_batches = count()


def make_plan(dtype: ElementType = ElementType.BF16, scale: float = 1.0, taps: tuple[TapPoint, ...] = TAPS) -> Plan:
    """A plan of its own generation; its directions are integers times ``scale``, so that sums of integer rows are exact."""
    rng = np.random.default_rng(7)
    plans, first = [], 0
    for where, columns in zip(taps, COLUMNS, strict=False):
        plans.append(tap_plan(where, scale * rng.integers(-2, 3, (WIDTH, columns)), first))
        first += columns - 1
    return plan_of(plans, model_of(WIDTH, dtype), next(_generations))


class Hot:
    """A pipeline with a registered engine, and whoever multiplies for it."""

    def __init__(self, clock: Clock, shards: Shards | None = None, product: str = "numpy_f32", **sections: Any) -> None:
        self._clock = clock
        self.pipeline = Pipeline(
            Config.model_validate({"ladder": {"enabled": False}, **sections}),
            clock,
            lambda _: None,
            kernels=Kernels(0.01, [product]),
        )
        if shards is not None:
            self.pipeline.others = shards

    def bind(self, plan: Plan) -> None:
        self.pipeline.admit(plan.model, ENGINE)
        self.pipeline.bind(plan)
        self.pipeline.introduce(TrafficReport(ENGINE, 0, 0, (), 0, TapLedgerCounts()))

    def submit(self, batch: StepBatch) -> Result:
        now_s = self._clock.monotonic_s()
        self.pipeline.arrive()
        try:
            return self.pipeline.submit(batch, Arrival(now_s, now_s))
        finally:
            self.pipeline.settle()
            assert self.pipeline.ledger.step_batches.counts().balanced
            assert self.pipeline.ledger.rows.counts().in_flight == 0

    def rows(self) -> dict[str, int]:
        """Where rows have gone so far, without what is 0."""
        now = self.pipeline.ledger.rows.counts()
        gone = {"scored": now.scored, **now.dropped, **now.rejected}
        return {str(name): rows for name, rows in gone.items() if rows}


def named(batch: StepBatch, **changes: Any) -> StepBatch:
    return replace(batch, batch_id=BatchId(f"b{next(_batches)}"), **changes)


def make_batch(taps: tuple[TapPoint, ...] = TAPS, tokens: int = 3, seed: int = 0, **changes: Any) -> StepBatch:
    """Integer rows, so that every product is exact whoever computes it."""
    rng = np.random.default_rng(seed)
    tensors = [tensor_of(where, rng.integers(-3, 4, (tokens, WIDTH)), ElementType.BF16) for where in taps]
    return named(batch_of(*tensors), **{"plan_generation": 0, **changes})


@pytest.fixture(scope="module")
def shards() -> Iterator[Shards]:
    """Two, with a clock that stands still: nothing is ever late."""
    made = Shards(2, ManualClock(), Log(SystemClock()))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def mortal(lines: list[str]) -> Iterator[Shards]:
    """One shard, to be frozen or killed."""
    made = Shards(1, SystemClock(), Log(SystemClock(), write=lines.append))
    made.start()
    yield made
    made.stop()


def freeze(pid: int) -> None:
    """Returns when the process, a child of this one, has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def kill(pid: int) -> None:
    """Returns when the process, a child of this one, is dead."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    ends_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends_s


# the same as without


@st.composite
def batches(draw: st.DrawFn, dtype: ElementType) -> StepBatch:
    """Several requests at some of the tap points; now and then a row that overflows, a NaN, or a tap point without a plan."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    taps = draw(st.lists(st.sampled_from((*TAPS, UNREAD)), min_size=1, max_size=7, unique=True))
    tensors = []
    for _ in taps:
        rows = rng.normal(size=(sum(lengths), WIDTH)).astype(np.float32)
        if draw(st.integers(0, 9)) == 0:
            rows[rng.integers(len(rows))] = 3e38
        tensors.append(rows)
    if draw(st.integers(0, 9)) == 0:
        tensors[rng.integers(len(taps))][0, 3] = np.nan
    made = batch_of(
        *(tensor_of(where, rows, dtype) for where, rows in zip(taps, tensors, strict=True)),
        rows=lengths,
        first=draw(st.integers(0, 50)),
    )
    return named(made, plan_generation=0, verdict_within_s=draw(st.sampled_from((0.0, 1.0))))


@pytest.mark.parametrize("product", ["numpy_f32", "torch_f32", "torch_bf16x2"])
def test_results_ledger_and_published_counts_are_those_of_one_process_to_the_bit(shards: Shards, product: str) -> None:
    plan = make_plan()
    alone, joined = Hot(ManualClock(), product=product), Hot(ManualClock(), shards, product)
    for hot in (alone, joined):
        hot.bind(plan)
    before = dict(shards.counts().tensors)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(batches(ElementType.BF16))
    def same(batch: StepBatch) -> None:
        assert alone.submit(batch) == joined.submit(batch)
        assert alone.rows() == joined.rows()
        told, expected = published.facts(joined.pipeline), published.facts(alone.pipeline)
        for facts in (told, expected):
            facts["run"].pop("shards")
            facts["run"].pop("kernels")  # they show times
        assert told == expected
        for ours, theirs in zip(published.arrays(joined.pipeline), published.arrays(alone.pipeline), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    same()
    after = shards.counts().tensors
    assert after[ShardOutcome.SHARD] > before[ShardOutcome.SHARD] + 40
    assert after[ShardOutcome.SHARD_LATE] == 0
    assert {"scored", DropReason.NO_PLAN, DropReason.SCORE_NON_FINITE} <= joined.rows().keys()


def test_readings_are_joined_by_request_position_and_signal(shards: Shards) -> None:
    plan, kernels = make_plan(), Kernels(0.01, ["numpy_f32"])
    kernels.bind(plan)
    shards.bind(plan, kernels)
    shards.begin(1.0)
    batch = make_batch(tokens=5)
    readings = read(plan, batch, kernels, others=shards)
    rng = np.random.default_rng(0)
    for where in TAPS:
        tap = plan.taps[where]
        expected = rng.integers(-3, 4, (5, WIDTH)) @ tap.directions
        np.testing.assert_array_equal(readings.values[:, tap.signals], expected[:, :-1])
    assert [one.tap_point for one in readings.taps] == list(TAPS)
    assert readings.valid.all()
    assert not readings.late.any()


def test_a_nan_in_a_shards_rows_is_the_senders_fault_and_the_next_batch_is_read(shards: Shards) -> None:
    hot, plan = Hot(ManualClock(), shards), make_plan()
    hot.bind(plan)
    elsewhere = next(where for share in deal(plan, 3)[1:] for where in share)
    rows = {where: np.zeros((2, WIDTH)) for where in TAPS}
    rows[elsewhere][1, 5] = np.nan
    tensors = [tensor_of(where, rows[where], ElementType.BF16) for where in TAPS]
    refused = hot.submit(named(batch_of(*tensors), plan_generation=0))
    assert (refused.reason, refused.field) == (
        RejectReason.NON_FINITE,
        f"step_batch.tensors[{TAPS.index(elsewhere)}].raw",
    )
    assert hot.submit(make_batch()).scored
    assert hot.rows() == {RejectReason.NON_FINITE: 12, "scored": 18}


# one generation


def test_every_batch_is_read_by_one_generation_whatever_a_refused_one_left_in_the_rings(shards: Shards) -> None:
    kernels = Kernels(0.01, ["numpy_f32"])
    bad = make_batch()
    own = deal(make_plan(), 3)[0][0]
    broken = [replace(one, values=one.values[:, :-1]) if one.tap_point == own else one for one in bad.tensors]
    for scale in (1.0, 2.0, -3.0, 0.5):
        plan = make_plan(scale=scale)
        kernels.bind(plan)
        shards.bind(plan, kernels)
        for seed in range(3):
            batch = make_batch(seed=seed)
            shards.begin(1.0)
            values = read(plan, batch, kernels, others=shards).values
            rng = np.random.default_rng(seed)
            rows = [rng.integers(-3, 4, (3, WIDTH)) for _ in TAPS]
            exact = [row @ tap.directions[:, :-1] for row, tap in zip(rows, plan.taps.values(), strict=True)]
            np.testing.assert_array_equal(values, np.concatenate(exact, axis=1))
        shards.begin(1.0)
        with pytest.raises(Rejected):  # its rows are with the shards, and nobody asks for the answers
            read(plan, replace(bad, tensors=tuple(broken)), kernels, others=shards)


def test_a_shard_reads_with_the_worker_s_kernels(shards: Shards) -> None:
    """Else a request's score would depend on who read its rows."""
    plan, ours, theirs = make_plan(), Kernels(0.05), Kernels(0.0)
    ours.bind(plan)
    theirs.bind_like(plan, ours.choices())
    assert theirs.choices() == ours.choices()


# who reads what


@given(st.lists(st.integers(2, 64), min_size=1, max_size=24), st.integers(1, 6), st.sets(st.integers(0, 23)))
def test_every_tap_point_is_dealt_once_and_evenly_and_the_worker_keeps_verdicts(
    columns: list[int], readers: int, verdicts: set[int]
) -> None:
    taps = [tap_plan(TapPoint(i), np.ones((4, k))) for i, k in enumerate(columns)]
    plan = plan_of(taps, model_of(4), verdict_taps=frozenset(TapPoint(i) for i in verdicts if i < len(columns)))
    shares = deal(plan, readers)
    assert sorted(where for share in shares for where in share) == sorted(plan.taps)
    assert all(shares)
    loads = [sum(plan.taps[where].directions.size for where in share) for share in shares]
    assert max(loads) - min(loads) <= 4 * max(columns)
    kept = [len(plan.verdict_taps.intersection(share)) for share in shares]
    assert kept[0] == max(kept)


def test_a_single_tap_point_stays_with_the_worker(shards: Shards) -> None:
    hot = Hot(ManualClock(), shards)
    hot.bind(make_plan(taps=TAPS[:1]))
    before = dict(shards.counts().tensors)
    assert hot.submit(make_batch(TAPS[:1])).scored
    assert shards.counts().tensors == before


def test_only_what_is_to_be_read_is_sent(shards: Shards) -> None:
    plan, kernels = make_plan(), Kernels(0.01, ["numpy_f32"])
    kernels.bind(plan)
    shards.bind(plan, kernels)
    sent: list[tuple[TapPoint, int]] = []

    class Witness(Shards):
        def __init__(self) -> None: ...

        def ask(self, tap_plan: Any, values: Any, dtype: ElementType) -> Any:
            sent.append((tap_plan.tap_point, len(values)))
            return shards.ask(tap_plan, values, dtype)

    shards.begin(1.0)
    batch, shed = make_batch(tokens=24), Shed(4, frozenset(TAPS[:2]))
    kept = shed.keeps(batch.segments.positions)
    assert kept is not None
    readings = read(plan, batch, kernels, shed, Witness())
    expected = read(plan, batch, kernels, shed)
    assert sent == [(where, int(kept.sum())) for where in TAPS[2:]]
    np.testing.assert_array_equal(readings.values, expected.values)
    assert readings.taps == expected.taps


def test_rows_that_do_not_fit_a_slot_are_read_by_the_worker(shards: Shards) -> None:
    hot = Hot(ManualClock(), shards, limits={"rows": 1 << 18})
    plan = make_plan()
    hot.bind(plan)
    elsewhere = deal(plan, 3)[1][0]
    tokens = (16 << 20) // (2 * WIDTH)  # as many bytes as a slot has, and 64 are the header's
    batch = batch_of(tensor_of(elsewhere, np.zeros((tokens, WIDTH)), ElementType.BF16), rows=(tokens,))
    before = shards.counts().tensors[ShardOutcome.WORKER]
    assert hot.submit(named(batch, plan_generation=0)).scored
    assert shards.counts().tensors[ShardOutcome.WORKER] == before + 1
    assert hot.rows() == {"scored": tokens}


# a shard that is lost


def test_nothing_is_lost_when_a_shard_is_killed(mortal: Shards, lines: list[str]) -> None:
    hot = Hot(SystemClock(), mortal)
    hot.bind(make_plan())
    assert hot.submit(make_batch()).scored
    (pid,) = mortal.pids
    kill(pid)
    assert hot.submit(make_batch()).scored
    assert hot.submit(make_batch(verdict_within_s=1.0)).scored
    assert hot.rows() == {"scored": 54}
    assert mortal.counts().states == {ShardState.SERVING: 0, ShardState.LOST: 1}
    (lost,) = [json.loads(line) for line in lines]
    assert (lost["event"], lost["level"], lost["pid"]) == ("shard_lost", "error", pid)
    hot.bind(make_plan())
    assert hot.submit(make_batch()).scored


def test_what_a_shard_was_asked_before_it_died_is_read_by_the_worker(mortal: Shards) -> None:
    plan, kernels = make_plan(), Kernels(0.01, ["numpy_f32"])
    kernels.bind(plan)
    mortal.bind(plan, kernels)
    (pid,) = mortal.pids
    freeze(pid)
    mortal.begin(time.monotonic() + 20.0)
    where, *_ = deal(plan, 2)[1]
    (tensor,) = make_batch((where,)).tensors
    answers = [mortal.ask(plan.taps[where], tensor.values, tensor.dtype) for _ in range(2)]
    kill(pid)
    expected = kernels.project(plan.taps[where], tensor.values, tensor.dtype).copy()
    for answer in answers:
        assert answer is not None
        readings = answer()
        assert readings is not None
        np.testing.assert_array_equal(readings, expected)
    assert mortal.counts().tensors == {ShardOutcome.SHARD: 0, ShardOutcome.SHARD_LATE: 0, ShardOutcome.WORKER: 2}


def test_a_frozen_shard_makes_its_signals_late_once_and_comes_back(mortal: Shards) -> None:
    hot, plan = Hot(SystemClock(), mortal), make_plan()
    hot.bind(plan)
    assert hot.submit(make_batch()).scored
    elsewhere = deal(plan, 2)[1]
    late = {one.name for one in plan.signals if one.tap_point in elsewhere}
    (pid,) = mortal.pids
    freeze(pid)
    try:
        result = hot.submit(make_batch(verdict_within_s=0.2))
        assert result.scored
        assert not result.late
        for verdict in result.verdicts:
            assert set(verdict.late) == late
            assert not late.intersection((*verdict.read, *verdict.skipped))
        assert hot.rows() == {"scored": 18 + 3 * (6 - len(elsewhere)), DropReason.DEADLINE: 3 * len(elsewhere)}
        behind = hot.submit(make_batch(verdict_within_s=5.0))  # it owes an answer, so nobody waits for it
        assert not any(verdict.late for verdict in behind.verdicts)
    finally:
        os.kill(pid, signal.SIGCONT)
    before = mortal.counts().tensors[ShardOutcome.SHARD]
    until(lambda: hot.submit(make_batch()).scored and mortal.counts().tensors[ShardOutcome.SHARD] > before)
    assert hot.rows().keys() == {"scored", DropReason.DEADLINE}
    assert mortal.counts().states[ShardState.SERVING] == 1


def test_a_frozen_shard_that_is_killed_is_missed_at_the_next_step(mortal: Shards) -> None:
    hot = Hot(SystemClock(), mortal)
    hot.bind(make_plan())
    (pid,) = mortal.pids
    freeze(pid)
    hot.submit(make_batch(verdict_within_s=0.05))
    kill(pid)
    assert hot.submit(make_batch()).scored
    assert mortal.counts().states[ShardState.LOST] == 1


def test_a_batch_of_which_all_is_late_gets_the_policy_s_answer(mortal: Shards) -> None:
    hot, plan = Hot(SystemClock(), mortal, verdicts={"at_deadline": "block"}), make_plan()
    hot.bind(plan)
    freeze(mortal.pids[0])
    where, *_ = deal(plan, 2)[1]
    result = hot.submit(make_batch((where,), verdict_within_s=0.1))
    assert (result.scored, result.reason, result.late) == (False, DropReason.DEADLINE, True)
    assert {one.action for one in result.verdicts} == {Action.BLOCK}
    assert hot.rows() == {DropReason.DEADLINE: 3}


@pytest.mark.parametrize(("acts", "answer"), [(Action.ESCALATE, Action.BLOCK), (Action.ALLOW, Action.ALLOW)])
def test_closed_policy_holds_where_a_late_signal_could_have_stopped_the_request(
    mortal: Shards, acts: Action, answer: Action
) -> None:
    plan = make_plan()
    plan = replace(plan, signals=tuple(replace(one, threshold=0.999999) for one in plan.signals))
    late = next(one for one in plan.signals if one.tap_point in deal(plan, 2)[1])
    hot = Hot(SystemClock(), mortal, verdicts={"at_deadline": "block", "signals": {late.name: acts}})
    hot.bind(plan)
    freeze(mortal.pids[0])
    result = hot.submit(make_batch(verdict_within_s=0.1))
    assert result.scored
    assert {one.action for one in result.verdicts} == {answer}


def test_a_shard_that_does_not_take_a_plan_is_given_up_and_the_plan_is_in_force(
    mortal: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.worker.shard_handle._BIND_S", 0.1)
    hot = Hot(SystemClock(), mortal)
    freeze(mortal.pids[0])
    hot.bind(make_plan())
    assert hot.submit(make_batch()).scored
    assert mortal.counts().states == {ShardState.SERVING: 0, ShardState.LOST: 1}


def test_shards_that_do_not_start_are_a_fault_of_the_start_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def spawn_nothing(module: str, descriptors: list[int]) -> subprocess.Popen[bytes]:
        started.append(spawn(f"{module}_that_is_not_there", descriptors))
        return started[-1]

    monkeypatch.setattr("sidecar.worker.shard_handle.spawn", spawn_nothing)
    shards = Shards(2, SystemClock(), Log(SystemClock()))
    with pytest.raises(ConfigError, match=r"worker\.shards"):
        shards.start()
    assert [one.poll() is not None for one in started] == [True, True]
    assert shards.pids == ()
    shards.stop()


# the whole


def shard_pids(worker: int) -> list[int]:
    return [child.pid for child in psutil.Process(worker).children()]


def test_a_sidecar_with_shards_serves_shows_them_and_leaves_none(serve: Callable[..., Sidecar]) -> None:
    others = set(shard_pids(os.getpid()))
    sidecar = serve(**{"worker.shards": 1})
    (pid,) = set(shard_pids(os.getpid())) - others
    with Client(sidecar) as client:
        client.register()
        client.good()
        assert 'stethoscope_shards{state="serving"} 1' in client.scrape()
    sidecar.stop()
    assert not psutil.pid_exists(pid)


def test_shards_end_with_a_worker_that_is_killed(home: Any, artifacts: Any) -> None:
    with Process(home, artifacts, "--set", "worker.shards=2") as process:
        pids = shard_pids(process.worker_pid)
        assert len(pids) == 2
        with Client(process) as client:
            client.register()
            answer = client.observe(wire_batch())
            assert answer.result is not None
            assert answer.result.outcome == ingest_pb2.OUTCOME_SCORED
        os.kill(process.worker_pid, signal.SIGKILL)
        assert process.wait() == 70
        until(lambda: not any(map(psutil.pid_exists, pids)))
