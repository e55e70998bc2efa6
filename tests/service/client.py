"""A plain client of a sidecar, with the views that fault tests compare before and after."""

from __future__ import annotations

import http.client
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.types import ModelIdentity
from tests.builders import MODEL, wire_batch, wire_model

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """Status, field path and fixed text of a refused call; OK and the result of an accepted one."""

    code: grpc.StatusCode
    field: str = ""
    text: str = ""
    result: ingest_pb2.StepResult | None = None


class Served(Protocol):
    """A sidecar that answers: in this process, or in one of its own."""

    @property
    def address(self) -> str: ...

    @property
    def metrics_port(self) -> int: ...


class Client:
    def __init__(self, sidecar: Served) -> None:
        self.sidecar = sidecar
        self.channel = grpc.insecure_channel(
            sidecar.address, options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, raw: bytes, timeout_s: float = TIMEOUT_S, **options: Any) -> bytes:
        made: bytes = self.channel.unary_unary(f"/stethoscope.v1.{method}")(raw, timeout=timeout_s, **options)
        return made

    def register(self, model: ModelIdentity = MODEL, engine: str = "engine-0") -> control_pb2.RegisterResponse:
        """As a tap does: a worker that has just been started may not answer yet, and is asked again."""
        request = control_pb2.RegisterRequest(engine_id=engine, model=wire_model(model)).SerializeToString()
        last = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return control_pb2.RegisterResponse.FromString(self.call("ControlService/Register", request))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > last:
                    raise

    def status(self) -> control_pb2.GetStatusResponse:
        return control_pb2.GetStatusResponse.FromString(self.call("ControlService/GetStatus", b""))

    def observe(self, batch: ingest_pb2.StepBatch | bytes, **options: Any) -> Answer:
        """A batch, or the raw bytes of a whole request."""
        raw = batch if isinstance(batch, bytes) else ingest_pb2.ObserveRequest(step_batch=batch).SerializeToString()
        try:
            made = ingest_pb2.ObserveResponse.FromString(self.call("IngestService/Observe", raw, **options))
        except grpc.RpcError as error:
            return Answer(error.code(), _field(error), error.details() or "")
        return Answer(grpc.StatusCode.OK, result=made.result)

    def good(self, **changes: Any) -> ingest_pb2.StepResult:
        """Send a sound batch; fail unless it is scored."""
        answer = self.observe(wire_batch(**changes))
        assert answer.code is grpc.StatusCode.OK, answer
        assert answer.result is not None
        assert answer.result.outcome == ingest_pb2.OUTCOME_SCORED, answer
        return answer.result

    def stream(self, timeout_s: float = 60.0) -> Stream:
        return Stream(self.channel, timeout_s)

    def scrape(self, path: str = "/metrics", accept: str = "") -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.sidecar.metrics_port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"Accept": accept} if accept else {})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def science(self) -> dict[str, str]:
        """Every series that must not move when a batch is refused: probe metrics, coverage, requests."""
        names = (
            "stethoscope_probe",
            "stethoscope_tokens",
            "stethoscope_positive",
            "stethoscope_requests",
            "stethoscope_blind",
        )
        return {k: v for k, v in self.series().items() if k.startswith(names)}

    def series(self) -> dict[str, str]:
        lines = (line for line in self.scrape().splitlines() if line and not line.startswith("#"))
        return dict(line.rsplit(" ", 1) for line in lines)

    def moved(self, before: dict[str, str]) -> dict[str, float]:
        """Ledger series that changed since, by how much. Short names: "step_batches_rejected{non_finite}"."""
        changes = {}
        for name, value in self.series().items():
            if not name.startswith(("stethoscope_step_batches", "stethoscope_rows")):
                continue
            delta = float(value) - float(before.get(name, "0"))
            if delta:
                short = name.removeprefix("stethoscope_").replace("_total", "").replace('reason="', "").replace('"', "")
                changes[short] = delta
        return changes


class Stream:
    """A bidirectional stream driven by hand."""

    def __init__(self, channel: grpc.Channel, timeout_s: float) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._replies = channel.stream_stream("/stethoscope.v1.IngestService/Stream")(self._drain(), timeout=timeout_s)

    def _drain(self) -> Iterator[bytes]:
        while (raw := self._requests.get()) is not None:
            yield raw

    def send(self, message: ingest_pb2.StreamRequest | bytes) -> None:
        self._requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def send_batch(self, batch: ingest_pb2.StepBatch) -> None:
        self.send(ingest_pb2.StreamRequest(step_batch=batch))

    def next(self) -> ingest_pb2.StreamResponse:
        return ingest_pb2.StreamResponse.FromString(next(self._replies))

    def next_result(self) -> ingest_pb2.StepResult:
        while True:
            reply = self.next()
            if reply.HasField("result"):
                return reply.result

    def close(self) -> None:
        """Half-close, then read to the end."""
        self._requests.put(None)
        for _ in self._replies:
            pass

    def cancel(self) -> None:
        self._replies.cancel()
        self._requests.put(None)


def _field(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return str(bad.field_violations[0].field)
    return ""
