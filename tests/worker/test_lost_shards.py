"""Nothing is lost when a shard is killed, frozen, or never comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.errors import ConfigError, DropReason
from sidecar.log import Log
from sidecar.reading.kernels import Kernels
from sidecar.service import Sidecar
from sidecar.snapshot import ShardOutcome, ShardState
from sidecar.types import Action
from sidecar.worker.shards import Shards, deal
from sidecar.worker.spawn import spawn
from tests.builders import wire_batch
from tests.faults.process import Process
from tests.service.client import Client
from tests.waiting import until
from tests.worker.sharded import (
    Sharded,
    freeze,
    kill,
    make_batch,
    make_plan,
)

pytestmark = pytest.mark.process


def test_nothing_is_lost_when_a_shard_is_killed(mortal: Shards, lines: list[str]) -> None:
    hot = Sharded(SystemClock(), mortal)
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
    hot, plan = Sharded(SystemClock(), mortal), make_plan()
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
    hot = Sharded(SystemClock(), mortal)
    hot.bind(make_plan())
    (pid,) = mortal.pids
    freeze(pid)
    hot.submit(make_batch(verdict_within_s=0.05))
    kill(pid)
    assert hot.submit(make_batch()).scored
    assert mortal.counts().states[ShardState.LOST] == 1


def test_a_batch_of_which_all_is_late_gets_the_policy_s_answer(mortal: Shards) -> None:
    hot, plan = Sharded(SystemClock(), mortal, verdicts={"at_deadline": "block"}), make_plan()
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
    hot = Sharded(SystemClock(), mortal, verdicts={"at_deadline": "block", "signals": {late.name: acts}})
    hot.bind(plan)
    freeze(mortal.pids[0])
    result = hot.submit(make_batch(verdict_within_s=0.1))
    assert result.scored
    assert {one.action for one in result.verdicts} == {answer}


def test_a_shard_that_does_not_take_a_plan_is_given_up_and_the_plan_is_in_force(
    mortal: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.worker.shard_handle._BIND_S", 0.1)
    hot = Sharded(SystemClock(), mortal)
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
