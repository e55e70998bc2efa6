"""One sidecar that gets everything bad there is, and must answer each time as if it had been the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from protos.stethoscope.v1 import ingest_pb2
from sidecar.service import Sidecar
from tests.builders import wire_batch
from tests.service.client import Client, Stream
from tests.service.ringed import Ringed
from tests.service_fixtures import private_folder, settings, write_artifacts

LEDGER = ("stethoscope_step_batches", "stethoscope_rows")
# What moves by itself, or because we look: everything else must stand still when a batch is refused.
VOLATILE = (
    "stethoscope_uptime_seconds",
    "stethoscope_http_requests",
    "stethoscope_log_lines_suppressed",
    "stethoscope_counts_age",
    "stethoscope_queue_age",
    "stethoscope_process",
)


def standing(series: dict[str, str]) -> dict[str, str]:
    """Every series but the ledger's and those that move by themselves."""
    return {name: value for name, value in series.items() if not name.startswith((*LEDGER, *VOLATILE))}


def encoded(batch: ingest_pb2.StepBatch | bytes) -> bytes:
    """The bytes of a whole request: an ObserveRequest and a StreamRequest carry a batch in the same field."""
    return batch if isinstance(batch, bytes) else ingest_pb2.ObserveRequest(step_batch=batch).SerializeToString()


@dataclass
class Survivor:
    """A registered client, a stream of the same engine, and what the sidecar logged."""

    client: Client
    stream: Stream
    ringed: Ringed
    lines: list[str]

    def refuses(self, request: ingest_pb2.StepBatch | bytes, reason: str, field: str, *, rows: int = 0) -> None:
        """Every way in: the status and field path, the ledger by exactly one, nothing else, and the next batch scores."""
        raw = encoded(request)
        for way in (self._observe, self._send, self._post):
            before = self.client.series()
            way(raw, reason, field)
            wanted = {"step_batches_received": 1.0, f"step_batches_rejected{{{reason}}}": 1.0}
            if rows:
                wanted |= {"rows_received": float(rows), f"rows_rejected{{{reason}}}": float(rows)}
            assert self.client.moved(before) == wanted
            assert standing(self.client.series()) == standing(before)
            self.scores()

    def scores(self) -> None:
        """A sound batch is scored, by every way."""
        self.client.good()
        self.stream.send_batch(wire_batch())
        assert self.stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
        assert self.ringed.batch(wire_batch()).outcome == ingest_pb2.OUTCOME_SCORED

    def _observe(self, raw: bytes, reason: str, field: str) -> None:
        answer = self.client.observe(raw)
        assert (answer.code, answer.text, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)

    def _send(self, raw: bytes, reason: str, field: str) -> None:
        self.stream.send(raw)
        self._check(self.stream.next_result(), reason, field)

    def _post(self, raw: bytes, reason: str, field: str) -> None:
        self.ringed.post(raw)
        self._check(self.ringed.result(), reason, field)

    @staticmethod
    def _check(result: ingest_pb2.StepResult, reason: str, field: str) -> None:
        assert (result.outcome, result.reason, result.field) == (ingest_pb2.OUTCOME_REJECTED, reason, field)
        assert (result.plan_generation, len(result.verdicts)) == (0, 0)


@contextmanager
def surviving() -> Iterator[Survivor]:
    """Its tests come and go at any pace, so silence between them must not count as blindness."""
    lines: list[str] = []
    with private_folder() as home:
        flags: dict[str, object] = {"coverage.report_s": 1e6, "listen.max_message_bytes": 24 << 20}
        sidecar = Sidecar(settings(home, write_artifacts(home), **flags), write_log=lines.append)
        sidecar.start()
        try:
            with Client(sidecar) as client:
                client.register()
                stream = client.stream(timeout_s=3600.0)
                ringed = Ringed(client, timeout_s=3600.0)
                yield Survivor(client, stream, ringed, lines)
                ringed.close()
                stream.cancel()
        finally:
            sidecar.stop()
