"""A sidecar without its sockets: the pipeline, the keeper and the canaries of the product, on a clock that moves when told.

Steps and canaries come as an engine's batches do, hidden states and all; ticks go to the keeper in the bytes that the worker sends.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from probes.registry import load_all
from sidecar.clock import ManualClock
from sidecar.config import Config, load_config
from sidecar.export.points import READERS
from sidecar.export.table import BY_NAME
from sidecar.live import canary_runner, tickwire
from sidecar.live.canary_runner import CanaryRunner
from sidecar.live.keeper import Keeper
from sidecar.live.published import circuits_snapshot
from sidecar.log import Level, Log
from sidecar.reading.plan import Plan
from sidecar.snapshot import Snapshot
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    FloatArray,
    ModelIdentity,
    Phase,
    PositionArray,
    RequestId,
    Segments,
    StepBatch,
    TapPoint,
    TapTensor,
)
from tests.circuits.zoo.pools import Round
from tests.hot import Hot

TICK_S = 300
BEGIN_S = 1_700_438_400  # a Monday, midnight
_ENGINE = EngineId("engine-0")
_names = itertools.count()


def configured(home: Path, reference: Path | None) -> Config:
    """Settings as they are shipped but for the tick, and a request that is a session."""
    (home / "token").write_text("a token")
    told = {
        "circuits.archive": home / "archive",
        "circuits.tick_s": TICK_S,
        "circuits.requests_are_sessions": True,
        "canary.url": "http://127.0.0.1:1",
        "canary.token_file": home / "token",
        "canary.prompts": home / "prompts",
        "canary.every_s": TICK_S,
        "ladder.enabled": False,
        "metrics.port": 0,
    }
    more = {} if reference is None else {"canary.reference": reference}
    return load_config(env={}, flags={name: str(value) for name, value in (told | more).items()})


class Served:
    """canaries: what the engine makes of the fixed prompts, one round after another. draws: which sessions bet on which tokens."""

    def __init__(self, config: Config, artifacts: Path, model: ModelIdentity, canaries: Iterator[Round]) -> None:
        self.clock = ManualClock(epoch_ns=BEGIN_S * 10**9)
        log = Log(self.clock, Level.ERROR)
        self._hot = Hot(self.clock, artifacts=load_all(artifacts, limit=9), config=config)
        self._hot.register(str(_ENGINE), model)
        self._at_start = self._hot.snapshot()
        self._rounds = Canaries(config, self.clock, log, self, canaries)
        self.keeper = Keeper(config, self.clock, self, lambda _: self.plan, log, self._rounds)
        self._rounds.fetch = self.keeper.look
        self._rounds.begin()
        self._step = 0
        self._open: tuple[RequestId, ...] = ()  # end with the next step

    @property
    def plan(self) -> Plan:
        plan = self._hot.pipeline.plan
        assert plan is not None
        return plan

    def give(self, what: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """What the worker answers the keeper."""
        assert what == "ticks"
        pipeline = self._hot.pipeline
        pipeline.settle()
        if fields["last"] and pipeline.monitor is not None:
            pipeline.monitor.close()
        ticks, canaries = pipeline.ticks.since(fields["after"]), pipeline.canaries.take()
        return {"bytes": tickwire.write(descriptors[0], ticks, canaries)}

    def traffic(self, states: Mapping[TapPoint, FloatArray], positions: PositionArray, sessions: Sequence[str]) -> None:
        """One step. states: [requests, rows, width]; positions: [requests, rows]; sessions: of each request."""
        self._submit(states, positions, session_id_hashes=tuple(sessions))

    def canary(self, told: Round, routes: Sequence[str]) -> None:
        """One step with every prompt's last tokens."""
        lengths = np.array(told.lengths)
        positions = lengths[:, None] - np.arange(next(iter(told.states.values())).shape[1], 0, -1)
        facts = {"canaries": (True,) * len(lengths), "routes": tuple(routes), "prompt_tokens": lengths.astype(np.intp)}
        self._submit(told.states, positions.astype(np.uint32), **facts)

    def _submit(self, states: Mapping[TapPoint, FloatArray], positions: PositionArray, **facts: Any) -> None:
        many, rows = positions.shape
        requests = tuple(RequestId(f"request-{next(_names)}") for _ in range(many))
        self._step += 1
        known: dict[str, Any] = {"prompt_tokens": np.zeros(many, np.intp)} | facts
        segments = Segments(
            requests,
            np.arange(many) * rows,
            np.full(many, rows),
            np.ascontiguousarray(positions.reshape(-1)),
            np.full(many, Phase.PREFILL, np.int8),
            **known,
        )
        tensors = tuple(
            TapTensor(where, ElementType.F32, np.ascontiguousarray(states[where].reshape(many * rows, -1)))
            for where in self.plan.taps
        )
        batch = StepBatch(
            BatchId(f"batch-{self._step}"), _ENGINE, self.clock.unix_ns(), 0, self._step, segments, tensors, self._open
        )
        self._open = requests
        assert self._hot.submit(batch).scored
        self._hot.pipeline.settle()

    def tick(self, *, canaries: bool = True) -> None:
        """Time passes; the keeper looks, and canaries are sent as they are due or asked for."""
        self.clock.advance(TICK_S)
        self._hot.pipeline.settle()
        self.keeper.look()
        if canaries:
            self._rounds.due(self.plan)
            self.keeper.look()

    def snapshot(self) -> Snapshot:
        """Circuits as they are now; all else as it was at the start."""
        pipeline, monitor = self._hot.pipeline, self._hot.pipeline.monitor
        assert monitor is not None
        ticks, arrays = asdict(pipeline.ticks.counts), iter(monitor.counts.arrays())
        made = circuits_snapshot(monitor.facts(), ticks, arrays, self.plan)
        return replace(self._at_start, circuits=replace(made, kept=self.keeper.snapshot()))

    def series(self, names: Iterable[str]) -> dict[str, float]:
        """What a scrape shows of these metrics, without the prefix."""
        told, found = self.snapshot(), {}
        for name in names:
            labels = BY_NAME[f"stethoscope_{name}"].label_names
            for point in READERS[f"stethoscope_{name}"](told):
                pairs = ",".join(f'{label}="{value}"' for label, value in zip(labels, point.labels, strict=True))
                assert isinstance(point.value, int | float)
                found[f"{name}{{{pairs}}}"] = float(point.value)
        return found


class Canaries(CanaryRunner):
    """Rounds without a thread and without a network: the engine answers at once."""

    def __init__(self, config: Config, clock: ManualClock, log: Log, served: Served, answers: Iterator[Round]) -> None:
        super().__init__(config, clock, lambda: served.plan, log)
        self._served, self._answers = served, answers

    def begin(self) -> None:
        """What ``start`` does before it starts a thread."""
        with mock.patch.object(threading, "Thread"):
            self.start()
        self._thread = None

    def due(self, plan: Plan) -> None:
        """The rounds of one tick: one, and two if somebody asked."""
        asked = self._asked.is_set()
        self._asked.clear()
        with mock.patch.object(canary_runner, "Sender", self._sender):
            for _ in range(1 + asked):
                self._round(plan)

    def _sender(self, *_: object) -> Canaries:
        return self

    def send(self, prompts: Sequence[str]) -> int:
        """As `Sender.send`: every prompt, answered well."""
        self._served.canary(next(self._answers), [f"canary-{number}" for number in range(len(prompts))])
        return len(prompts)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What the product draws by chance, so that nobody outside can know it, is the same for the same seed."""
    draws = np.random.default_rng([seed, 77])

    def randbits(bits: int) -> int:
        return int.from_bytes(draws.bytes(bits // 8), "little")

    with mock.patch.object(secrets, "randbits", randbits):
        yield
