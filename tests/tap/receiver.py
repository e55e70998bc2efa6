"""A small real sidecar for the tap's tests: speaks the protocol, by gRPC and by shared rings, and remembers what comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.address import CONTROL, INGEST, ring_path
from sidecar.tap.wire import tap_point
from sidecar.types import TapPoint, UnseenReason
from tests.tap.ring_host import DEADLINE_S as DEADLINE_S  # noqa: PLC0414 - for the tests, explicitly
from tests.tap.ring_host import RingHost

_DTYPES = {ingest_pb2.ELEMENT_TYPE_F32: np.float32, ingest_pb2.ELEMENT_TYPE_F16: np.float16}
_UNSEEN = dict(enumerate(UnseenReason, 1))
Rows = dict[int, npt.NDArray[np.float32]]


def control(
    where: tuple[int | TapPoint, ...] = (),
    *,
    fraction: float = 1.0,
    stride: int = 1,
    first: int = 0,
    last: int = 0,
    generation: int = 1,
) -> ingest_pb2.Control:
    points = [tap_point(_point(one)) for one in where]
    policy = ingest_pb2.SamplingPolicy(
        request_fraction=fraction, token_stride=stride, first_tokens=first, last_tokens=last
    )
    return ingest_pb2.Control(plan_generation=generation, sampling=policy, tap_points=points)


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of the batch's table of segments."""

    request_id: str
    positions: list[int]
    phase: int
    prompt_tokens: int
    traceparent: str
    route: str
    session: str
    canary: bool
    unseen: dict[UnseenReason, int]
    media: list[tuple[int, int, int]]  # medium, first position, tokens


def _point(where: int | TapPoint) -> TapPoint:
    return TapPoint(where) if isinstance(where, int) else where


def segments_of(batch: ingest_pb2.StepBatch) -> list[Segment]:
    table, found, start = batch.segments, [], 0
    for number, request_id in enumerate(table.request_ids):
        stop = start + table.rows[number]
        unseen = {_UNSEEN[one.reason]: one.tokens for one in table.unseen if one.segment == number}
        found.append(
            Segment(
                request_id,
                list(table.positions[start:stop]),
                table.phases[number],
                table.prompt_tokens[number],
                table.traceparents[number] if table.traceparents else "",
                table.routes[number] if table.routes else "",
                table.session_id_hashes[number] if table.session_id_hashes else "",
                table.canaries[number] if table.canaries else False,
                unseen,
                [(one.medium, one.position, one.tokens) for one in table.media if one.segment == number],
            )
        )
        start = stop
    assert start == len(table.positions)
    return found


def _scored(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
    return ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED, plan_generation=1)


def _repeated(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
    return ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_DROPPED, reason="duplicate")


class Receiver:
    """Answers every batch by ``answer``, unless frozen. Everything received stands in lists, guarded by ``changed``.

    A batch id that came before is answered as a sidecar does, and stands in ``repeated`` alone. ``host`` offers rings if set.
    """

    def __init__(self, address: str, settings: ingest_pb2.Control, *, rings: bool = False) -> None:
        self.address = address
        self.settings = settings
        self.answer: Callable[[ingest_pb2.StepBatch], ingest_pb2.StepResult | None] = _scored
        self.refuse_registration: grpc.StatusCode | None = None
        self.changed = threading.Condition()
        self.registrations: list[control_pb2.RegisterRequest] = []
        self.requests: list[ingest_pb2.StreamRequest] = []
        self.repeated: list[str] = []
        # The same by kind, since every message of thousands wakes whoever waits for one of them.
        self.batches: list[ingest_pb2.StepBatch] = []
        self.reports: list[ingest_pb2.TrafficReport] = []
        self.finished: list[str] = []  # request ids
        self.goodbyes = 0
        self._batch_ids: set[str] = set()
        self.by_ring = 0  # of all messages
        self.plan: control_pb2.FetchPlanResponse | None = None
        self.fetches: list[int] = []  # known generations
        self.host: RingHost | None = None
        path = ring_path(address)
        if rings and path is not None:
            self.host = RingHost(path, self._from_slot)
        self._flowing = threading.Event()
        self._flowing.set()
        self._pushes: list[SimpleQueue[ingest_pb2.StreamResponse]] = []
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        handlers = {
            CONTROL: {
                "Register": grpc.unary_unary_rpc_method_handler(self._register),
                "FetchPlan": grpc.unary_unary_rpc_method_handler(self._fetch_plan),
            },
            INGEST: {"Stream": grpc.stream_stream_rpc_method_handler(self._stream)},
        }
        for service, methods in handlers.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        if self.host is not None:
            self.host.start()
        assert self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        self.thaw()
        if self._server is not None:
            self._server.stop(0).wait(DEADLINE_S)
            self._server = None
            if self.host is not None:
                self.host.stop()

    def freeze(self) -> None:
        """Stop reading and answering, with the connection open: what SIGSTOP does to a sidecar."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def push(self, settings: ingest_pb2.Control) -> None:
        """Change the settings while streams are open."""
        self.settings = settings
        for queue in list(self._pushes):
            queue.put(ingest_pb2.StreamResponse(control=settings))

    def wait(self, predicate: Callable[[Receiver], Any]) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: predicate(self), DEADLINE_S):
                raise AssertionError(f"not within {DEADLINE_S} s; {len(self.requests)} messages came")

    # what came, by kind

    @property
    def unseen(self) -> dict[UnseenReason, int]:
        """Of the newest report."""
        return {_UNSEEN[one.reason]: one.tokens for one in self.reports[-1].unseen}

    def rows(self, where: int | TapPoint) -> dict[str, Rows]:
        """States by request and position, at a tap point or after a block. Fails if a position came twice."""
        found: dict[str, Rows] = {}
        for batch in self.batches:
            for tensor in batch.tensors:
                if tensor.tap_point == tap_point(_point(where)):
                    self._file(found, batch, decode(tensor))
        return found

    def segments(self, request_id: str) -> list[Segment]:
        return [one for batch in self.batches for one in segments_of(batch) if one.request_id == request_id]

    @staticmethod
    def _file(found: dict[str, Rows], batch: ingest_pb2.StepBatch, states: npt.NDArray[np.float32]) -> None:
        row = 0
        for segment in segments_of(batch):
            mine = found.setdefault(segment.request_id, {})
            for position in segment.positions:
                assert position not in mine, f"{segment.request_id} has position {position} twice"
                mine[position] = states[row]
                row += 1
        assert row == len(states)

    # the protocol

    def _register(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        request = control_pb2.RegisterRequest.FromString(raw)
        with self.changed:
            self.registrations.append(request)
            self.changed.notify_all()
        if self.refuse_registration is not None:
            context.abort(self.refuse_registration, "another model is served")
        return control_pb2.RegisterResponse(control=self.settings).SerializeToString()

    def _stream(self, incoming: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        answers: SimpleQueue[ingest_pb2.StreamResponse | None] = SimpleQueue()
        first = ingest_pb2.StreamResponse(control=self.settings)
        if self.host is not None:
            first.control.ring_ticket = self.host.ticket()
        answers.put(first)
        self._pushes.append(answers)  # type: ignore[arg-type]
        threading.Thread(target=self._read, args=(incoming, answers), daemon=True).start()
        while context.is_active():
            try:
                answer = answers.get(timeout=0.1)
            except Empty:
                continue
            if answer is None:
                return
            yield answer.SerializeToString()

    def _read(self, incoming: Iterator[bytes], answers: Any) -> None:
        try:
            for raw in incoming:
                response = self._handle(ingest_pb2.StreamRequest.FromString(raw))
                if response is not None:
                    answers.put(response)
            answers.put(None)
        except grpc.RpcError:
            return  # the client went away

    def _from_slot(self, message: memoryview, slot: memoryview) -> bytes | None:
        """What came by a ring, made the same as what comes by gRPC. The reply; None if there is none yet."""
        request = ingest_pb2.StreamRequest.FromString(bytes(message))
        for tensor in request.step_batch.tensors:
            lift(tensor, slot)
            if tensor.HasField("sample"):
                lift(tensor.sample, slot)
        self.by_ring += 1
        response = self._handle(request)
        if response is not None:
            return response.SerializeToString()
        return None if request.HasField("step_batch") else b""

    def _handle(self, request: ingest_pb2.StreamRequest) -> ingest_pb2.StreamResponse | None:
        self._flowing.wait(DEADLINE_S)
        batch_id = request.step_batch.batch_id
        with self.changed:
            again = batch_id in self._batch_ids
            if again:
                self.repeated.append(batch_id)
            else:
                self.requests.append(request)
                self._file_by_kind(request)
            self.changed.notify_all()
        if not request.HasField("step_batch"):
            return None
        result = _repeated(request.step_batch) if again else self.answer(request.step_batch)
        return None if result is None else ingest_pb2.StreamResponse(result=result)

    def _file_by_kind(self, request: ingest_pb2.StreamRequest) -> None:
        kind = request.WhichOneof("body")
        if kind == "step_batch":
            self.batches.append(request.step_batch)
            self._batch_ids.add(request.step_batch.batch_id)
        elif kind == "traffic":
            self.reports.append(request.traffic)
        elif kind == "finished":
            self.finished.extend(request.finished.request_ids)
        elif kind == "goodbye":
            self.goodbyes += 1

    def _fetch_plan(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        known = control_pb2.FetchPlanRequest.FromString(raw).known_generation
        with self.changed:
            self.fetches.append(known)
            self.changed.notify_all()
        if self.plan is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no plan yet")
        if self.plan.generation == known:
            return control_pb2.FetchPlanResponse(generation=known).SerializeToString()
        return self.plan.SerializeToString()


def lift(holder: ingest_pb2.TapTensor | ingest_pb2.RawSample, slot: memoryview) -> None:
    """Take the bytes that a span names into the message. Fails unless the tensor keeps to the contract of a slot."""
    kind = holder.WhichOneof("payload")
    assert kind in ("raw_slot", "projected_slot"), kind
    span = getattr(holder, kind)
    assert span.offset % 64 == 0
    assert span.offset + span.size <= len(slot)
    setattr(holder, kind.removesuffix("_slot"), bytes(slot[span.offset : span.offset + span.size]))


def decode(tensor: ingest_pb2.TapTensor) -> npt.NDArray[np.float32]:
    """float32 [rows, columns], whatever the wire type; readings if they are what was sent."""
    raw = tensor.projected or tensor.raw
    shape = (tensor.rows, tensor.columns)
    if tensor.dtype == ingest_pb2.ELEMENT_TYPE_BF16:
        upper = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return upper.view(np.float32).reshape(shape)
    return np.frombuffer(raw, _DTYPES[tensor.dtype]).astype(np.float32).reshape(shape)


def blocks(*layers: int) -> tuple[TapPoint, ...]:
    return tuple(TapPoint(layer) for layer in layers)
