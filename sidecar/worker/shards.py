"""Further processes that multiply: rows of the tap points that were dealt to them go out, readings come back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from sidecar.clock import Clock
from sidecar.errors import ConfigError
from sidecar.log import Level, Log
from sidecar.reading.kernels import Kernels
from sidecar.reading.others import Answer
from sidecar.reading.plan import Plan, TapPlan
from sidecar.snapshot import ShardOutcome, ShardSnapshot, ShardState
from sidecar.types import ElementType, FloatArray, TapPoint
from sidecar.worker import planwire, shardwire
from sidecar.worker.shard_handle import ShardHandle, ShardLostError


def deal(plan: Plan, readers: int) -> list[tuple[TapPoint, ...]]:
    """Each reader's tap points, the work (directions x width) as even as it goes; the first share is the worker's own.

    The worker keeps the share with the most verdict taps, since what is read elsewhere may come late; otherwise the lightest,
    since it has other work. There are fewer shares than readers if there are fewer tap points.
    """
    work = {where: tap.directions.size for where, tap in plan.taps.items()}
    shares: list[list[TapPoint]] = [[] for _ in range(min(readers, len(work)))]

    def load(share: list[TapPoint]) -> int:
        return sum(work[where] for where in share)

    for where in sorted(work, key=lambda where: -work[where]):
        min(shares, key=load).append(where)
    shares.sort(key=lambda share: (-len(plan.verdict_taps.intersection(share)), load(share)))
    return [tuple(share) for share in shares]


class Shards:
    """Others (see ``reading.others``) in processes of their own. ``start`` raises ConfigError; ``stop`` twice is fine.

    A shard that died is not started again: what was dealt to it is multiplied by the worker, until the next plan is dealt to
    those that are left. So a batch never waits for a start, and nothing is lost but time.
    """

    def __init__(self, count: int, clock: Clock, log: Log) -> None:
        self._log = log
        self._clock = clock
        self._count = count
        self._serving: list[ShardHandle] = []
        self._dealt: dict[TapPoint, tuple[ShardHandle, int]] = {}  # and its number in that shard's share
        self._generation = 0
        self._kernels: Kernels | None = None
        self._until_s = 0.0
        self._lost = 0
        self._tensors: dict[str, int] = dict.fromkeys(ShardOutcome, 0)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the shards that serve."""
        return tuple(shard.pid for shard in self._serving)

    def start(self) -> None:
        try:
            for _ in range(self._count):
                shard = ShardHandle(self._clock)
                shard.start()
                self._serving.append(shard)
            for shard in self._serving:
                shard.wait_ready()
        except (OSError, ShardLostError):
            self.stop()
            raise ConfigError(["worker.shards: a shard did not start; its own lines say why"]) from None

    def stop(self) -> None:
        self._dealt = {}
        while self._serving:
            self._serving.pop().stop()

    def bind(self, plan: Plan, kernels: Kernels) -> None:
        """Every shard has the plan, or is lost, when this returns."""
        self._dealt, self._kernels, self._generation = {}, kernels, plan.generation
        memory = planwire.to_memory(plan)
        try:
            shares = deal(plan, 1 + len(self._serving))[1:]
            for shard, share in zip(list(self._serving), shares, strict=False):
                self._bind(shard, share, memory)
        finally:
            os.close(memory)

    def _bind(self, shard: ShardHandle, share: Sequence[TapPoint], memory: int) -> None:
        assert self._kernels is not None
        choices = [one for one in self._kernels.choices() if one.tap_point in share]
        try:
            shard.bind(memory, share, choices)
        except ShardLostError as lost:
            self._lose(shard, lost)
            return
        self._dealt.update({where: (shard, number) for number, where in enumerate(share)})

    def counts(self) -> ShardSnapshot:
        states: dict[str, int] = {ShardState.SERVING: len(self._serving), ShardState.LOST: self._lost}
        return ShardSnapshot(states, dict(self._tensors))

    def begin(self, until_s: float) -> None:
        self._until_s = until_s
        for shard in list(self._serving):
            try:
                shard.catch_up()
            except ShardLostError as lost:
                self._lose(shard, lost)

    def ask(self, tap_plan: TapPlan, values: npt.NDArray[Any], dtype: ElementType) -> Answer | None:
        shard, tap = self._dealt.get(tap_plan.tap_point, (None, 0))
        if shard is None or not len(values):
            return None
        number = shard.ask(shardwire.Work(self._generation, tap, dtype, values), tap_plan)
        if number is None:
            self._tensors[ShardOutcome.WORKER] += 1
            return None
        return lambda: self._answer(shard, number, tap_plan, values, dtype)

    def _answer(
        self, shard: ShardHandle, number: int, tap_plan: TapPlan, values: npt.NDArray[Any], dtype: ElementType
    ) -> FloatArray | None:
        if shard not in self._serving:  # lost with an earlier answer of this step
            return self._here(tap_plan, values, dtype)
        try:
            readings = shard.answer(number, self._until_s, (len(values), len(tap_plan.columns)))
        except ShardLostError as lost:
            self._lose(shard, lost)
            return self._here(tap_plan, values, dtype)
        self._tensors[ShardOutcome.SHARD_LATE if readings is None else ShardOutcome.SHARD] += 1
        return readings

    def _here(self, tap_plan: TapPlan, values: npt.NDArray[Any], dtype: ElementType) -> FloatArray:
        assert self._kernels is not None
        self._tensors[ShardOutcome.WORKER] += 1
        return self._kernels.project(tap_plan, values, dtype)

    def _lose(self, shard: ShardHandle, why: ShardLostError) -> None:
        self._serving.remove(shard)
        self._dealt = {where: dealt for where, dealt in self._dealt.items() if dealt[0] is not shard}
        self._lost += 1
        self._log.event(Level.ERROR, "shard_lost", pid=shard.pid, why=str(why), left=len(self._serving))
        shard.stop()
