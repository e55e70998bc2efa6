"""A real vLLM with the tap in it, and a receiver that remembers what came: for tests that hold every row against a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap import wire
from sidecar.types import TapPoint
from tests.engines.environment import Environment
from tests.engines.reference import Array, Reference, relative_error
from tests.engines.vllm_server import Completion, VllmServer
from tests.tap.receiver import Receiver, Segment, control, decode, segments_of

REPORT_S = 30.0


def asking(*points: TapPoint, fraction: float = 1.0, generation: int = 1) -> ingest_pb2.Control:
    """Settings of a sidecar that wants these tap points."""
    return control(points, fraction=fraction, generation=generation)


@dataclass(frozen=True, slots=True)
class Tapped:
    """The server, and what its tap sent."""

    server: VllmServer
    receiver: Receiver
    points: tuple[TapPoint, ...]

    def rows(self, request_id: str, point: TapPoint, *, projected: bool = False) -> dict[int, Array]:
        """Rows of a request at a tap point, by position. Fails if a position came twice."""
        found: dict[int, Array] = {}
        for batch in self.receiver.batches:
            for tensor in batch.tensors:
                if (
                    tensor.tap_point == wire.tap_point(point)
                    and (tensor.WhichOneof("payload") == "projected") is projected
                ):
                    self._file(found, request_id, batch, decode(tensor))
        return found

    @staticmethod
    def _file(found: dict[int, Array], request_id: str, batch: ingest_pb2.StepBatch, states: Array) -> None:
        row = 0
        for segment in segments_of(batch):
            for position in segment.positions:
                if segment.request_id == request_id:
                    assert position not in found, f"{request_id} has position {position} twice"
                    found[position] = states[row]
                row += 1

    def segments(self, request_id: str) -> list[Segment]:
        return self.receiver.segments(request_id)

    def ask(self, settings: ingest_pb2.Control) -> None:
        """Change what the sidecar wants. Back when the tap has taken it."""
        taken = self._taken
        self.receiver.push(settings)
        self.receiver.wait(lambda _: self._taken > taken)

    @property
    def _taken(self) -> int:
        return sum("settings plan=" in line for line in self.server.log)

    def wait_for_end(self, *names: str) -> None:
        """Until the tap has said that these requests are over: what is theirs came before."""
        self.receiver.wait(lambda r: set(names) <= set(r.finished))

    def complete(
        self, prompts: Sequence[Sequence[int]], names: Iterable[str], max_tokens: int = 16, **extra: Any
    ) -> list[Completion]:
        """All at once. Back when the tap has said that they are over."""

        def ask(prompt: Sequence[int], name: str) -> Completion:
            return self.server.complete(prompt, request_id=name, max_tokens=max_tokens, ignore_eos=True, **extra)

        with ThreadPoolExecutor(len(prompts)) as pool:
            done = list(pool.map(ask, prompts, names))
        self.wait_for_end(*(tap_id(one) for one in done))
        return done


def tap_id(done: Completion) -> str:
    """The name under which the sidecar knows it: the server's own, and which of the prompts in the call it was."""
    return f"{done.id}-0"


@contextmanager
def tapped(
    vllm: Environment,
    model: Path,
    folder: Path,
    *flags: str,
    points: Sequence[TapPoint],
    eager: bool,
    surroundings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Tapped]:
    """vLLM with ``STETHOSCOPE_TAP`` set to the tap points, and whatever else is set. Nothing is dropped for being late."""
    with staged(vllm, model, folder, *flags, stages=[points], eager=eager, surroundings=surroundings) as (made,):
        yield made


@contextmanager
def staged(
    vllm: Environment,
    model: Path,
    folder: Path,
    *flags: str,
    stages: Sequence[Sequence[TapPoint]],
    eager: bool,
    surroundings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Tapped]]:
    """A pipeline, whose stages each have a receiver of their own that wants their tap points. The server is one."""
    receivers = [Receiver(f"unix:{folder}/s{stage}", asking(*points)) for stage, points in enumerate(stages)]
    env = {
        **surroundings,
        "STETHOSCOPE_TAP": ",".join(point.name for points in stages for point in points),
        "STETHOSCOPE_ADDRESS": f"unix:{folder}/s{{stage}}",
        "STETHOSCOPE_QUEUE_S": "60",
        "STETHOSCOPE_ENGINE_ID": "vllm-under-test",
    }
    try:
        for receiver in receivers:
            receiver.start()
        with VllmServer(vllm, model, folder, *flags, env=env, eager=eager) as server:
            yield [Tapped(server, *pair) for pair in zip(receivers, map(tuple, stages), strict=True)]
    finally:
        for receiver in receivers:
            receiver.stop()


def worst_error(
    tapped: Tapped, reference: Reference, done: Completion, points: Iterable[TapPoint]
) -> dict[TapPoint, float]:
    """Of every row that was captured of a completion, against the reference. Fails if one is missing or too many."""
    points = list(points)
    want = reference.states(done.fed, points)
    worst = {}
    for point in points:
        got = tapped.rows(tap_id(done), point)
        unseen = len(done.fed) - len(got)
        told = sum(sum(one.unseen.values()) for one in tapped.segments(tap_id(done)))
        lost = sorted(set(range(len(done.fed))) - set(got))
        assert unseen == told, (
            f"{point.name}: no row at {lost}, {told} were said to have none; of all: {tapped.receiver.unseen}"
        )
        assert set(got) <= set(range(len(done.fed)))
        worst[point] = max(relative_error(row, want[point][position]) for position, row in got.items())
    return worst
