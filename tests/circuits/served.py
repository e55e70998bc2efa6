"""A sidecar that serves `tests.circuits.small`'s circuit, and an engine of the tests' own that sends it rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from probes.circuits.artifact import save_circuit
from probes.circuits.manifest import CircuitManifest
from probes.circuits.validation.gates import gates
from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import ManualClock
from sidecar.config import Config
from sidecar.reading.plan import Plan
from sidecar.service import Sidecar
from sidecar.types import FloatArray, ModelIdentity, TapPoint
from sidecar.worker.build import Parts
from tests.builders import wire_batch
from tests.circuits.small import LAYER, MLP, columns, findings, manifest_fields
from tests.probes.builders import MODEL, WIDTH
from tests.service.client import Client
from tests.service_fixtures import settings

SITES = {LAYER: ingest_pb2.SITE_ATTN_HEADS, MLP: ingest_pb2.SITE_MLP_OUT}
CIRCUIT = {"circuit": "going_on"}
ALL = {**CIRCUIT, "slice": "all"}
_names = itertools.count()


def engaged_rows(n: int, *, engaged: bool) -> dict[TapPoint, FloatArray]:
    """States whose score is far above theta, or far below: S = (log energy - .5) / 2 - .5 u.h + .25, theta 1."""
    own = columns()
    head = own[LAYER][:, 0] * (20.0 if engaged else 1e-3)
    return {LAYER: np.tile(head, (n, 1)).astype(np.float32), MLP: np.zeros((n, WIDTH), np.float32)}


def tensors(states: dict[TapPoint, FloatArray]) -> list[ingest_pb2.TapTensor]:
    return [
        ingest_pb2.TapTensor(
            tap_point=ingest_pb2.TapPoint(layer=where.layer, site=SITES[where]),
            dtype=ingest_pb2.ELEMENT_TYPE_F32,
            rows=len(rows),
            columns=rows.shape[1],
            raw=rows.astype("<f4").tobytes(),
        )
        for where, rows in states.items()
    ]


def step(states: dict[TapPoint, FloatArray], lengths: Sequence[int], first: int = 4, **columns_: Any) -> Any:
    """A batch of requests never seen before, with ``lengths`` rows each from position ``first`` on."""
    requests = [(f"req-{next(_names)}", tuple(range(first, first + many))) for many in lengths]
    made = wire_batch(np.zeros((sum(lengths), 1), np.float32), requests, tensors=tensors(states))
    for name, values in columns_.items():
        getattr(made.segments, name).extend(values)
    return made


def not_a_number(tokens: int = 4) -> Any:
    """A step that is refused whole, for one value in it."""
    states = engaged_rows(tokens, engaged=True)
    states[LAYER][1, 3] = np.nan
    return step(states, [tokens])


def overflowing(tokens: int, *places: TapPoint) -> Any:
    """A step of finite states of which no number can be made at these places."""
    return step(
        engaged_rows(tokens, engaged=True) | {where: np.full((tokens, WIDTH), 3e38) for where in places}, [tokens]
    )


def mixed(draws: np.random.Generator, share: float, sessions: int = 8, tokens: int = 4) -> Any:
    """A step of that many sessions of which about ``share`` use the circuit, all their tokens or none."""
    on = draws.random(sessions) < share
    parts = [engaged_rows(tokens, engaged=bool(one)) for one in on]
    states = {where: np.concatenate([part[where] for part in parts]) for where in parts[0]}
    return step(states, [tokens] * sessions)


def write_validated(folder: Path, **changes: Any) -> None:
    """The small circuit once it has passed every gate."""
    fields = manifest_fields(findings=findings())
    whole = fields | {"schema": "stethoscope.circuit/1", "content_digest": "0" * 64, "gates": []}
    told = CircuitManifest.model_validate(whole)
    assert told.findings is not None
    passed = [gate.model_dump() for gate in gates(told.findings, told.score)]
    save_circuit(folder, fields | {"gates": passed, "evidence": "used", "severity": "page"} | changes, columns())


def project(batch: Any, plan: Plan) -> Any:
    """The same step as a tap sends it that multiplies by itself."""
    for tensor in batch.tensors:
        where = next(one for one, site in SITES.items() if site == tensor.tap_point.site)
        rows = np.frombuffer(tensor.raw, "<f4").reshape(tensor.rows, tensor.columns)
        made = np.column_stack([rows @ plan.taps[where].directions, np.square(rows).sum(axis=1)]).astype("<f4")
        tensor.columns, tensor.projected = made.shape[1], made.tobytes()
    batch.plan_generation = plan.generation
    return batch


class Live:
    """The sidecar and its engine. Its worker is a thread, and its clock moves only when told."""

    def __init__(self, sidecar: Sidecar, client: Client, clock: ManualClock) -> None:
        self.sidecar, self.client, self.clock = sidecar, client, clock

    def send(self, batch: Any) -> ingest_pb2.StepResult:
        batch.taken_ns = self.clock.unix_ns()
        answer = self.client.observe(batch)
        assert answer.result is not None, answer
        return answer.result

    def refused(self, batch: Any) -> None:
        """Send what the sidecar must refuse for a value that is no number."""
        batch.taken_ns = self.clock.unix_ns()
        before = self.value("step_batches_rejected_total", reason="non_finite")
        assert self.client.observe(batch).field.startswith("step_batch.tensors[")
        assert self.value("step_batches_rejected_total", reason="non_finite") == before + 1

    def tick(self, seconds: float = 60.0) -> None:
        """Time passes; the worker has seen it when this returns, for the page is made by it."""
        self.clock.advance(seconds)
        self.client.series()

    def traffic(
        self, ticks: int, share: float, seed: int = 0, steps: int = 2, also: Callable[[], object] | None = None
    ) -> None:
        """So many ticks with 8 sessions a step. also: done in each of them besides."""
        draws = np.random.default_rng(seed)
        for _ in range(ticks):
            for _ in range(steps):
                self.send(mixed(draws, share))
            if also is not None:
                also()
            self.tick()

    def value(self, name: str, **labels: str) -> float:
        series = self.client.series()
        told = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        return float(series[f"stethoscope_{name}" + (f"{{{told}}}" if labels else "")])


def clock_at_an_hour() -> ManualClock:
    clock = ManualClock()
    clock.epoch_ns = clock.epoch_ns // 10**9 // 3600 * 3600 * 10**9
    return clock


@contextmanager
def live(
    home: Path,
    artifacts: Path,
    flags: Mapping[str, Any] | None = None,
    model: ModelIdentity = MODEL,
    clock: ManualClock | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[Live]:
    """clock: one that goes on from another sidecar's end; by default time begins at the same hour again."""
    clock = clock_at_an_hour() if clock is None else clock
    config: Config = settings(home, artifacts, **{"limits.clock_skew_s": 1e9, **(flags or {})})
    sidecar = Sidecar(config, clock, write_log=log, parts=Parts())
    sidecar.start()
    try:
        with Client(sidecar) as client:
            client.register(model)
            yield Live(sidecar, client, clock)
    finally:
        sidecar.stop()


def archived(home: Path) -> dict[str, Any]:
    return {"circuits.archive": str(home / "archive"), "circuits.requests_are_sessions": True}


def bets_of(one: Live, circuit: str) -> float:
    return one.value("circuit_session_engaged_ratio_count", circuit=circuit, slice="all")
