"""A plain client of a sidecar's shared ring, driven by hand: what a tap on the same machine does."""

from __future__ import annotations

import socket

from protos.stethoscope.v1 import ingest_pb2
from sidecar.address import ring_path
from sidecar.ring import ALIGN, Descriptors, Producer, Ring, aligned
from tests.service.client import Client, Stream

TIMEOUT_S = 10.0


class Ringed:
    """A stream and its ring. ``next_result`` answers what was posted, in order."""

    def __init__(self, client: Client, timeout_s: float = 60.0) -> None:
        self.stream = Stream(client.channel, timeout_s)
        control = self.stream.next().control
        self.ticket = control.ring_ticket
        path = ring_path(client.sidecar.address)
        assert path is not None
        self.ring = Ring.attach(fetch(path, self.ticket))
        self.producer = Producer(self.ring)

    def post(self, raw: ingest_pb2.StreamRequest | bytes, tensors: bytes = b"") -> None:
        data = raw if isinstance(raw, bytes) else raw.SerializeToString()
        slot = self.producer.reserve()
        assert slot is not None
        slot[: len(data)] = data
        start = aligned(len(data)) if tensors else len(data)
        slot[start : start + len(tensors)] = tensors
        self.producer.post(len(data), start + len(tensors))

    def reply(self, timeout_s: float = TIMEOUT_S) -> bytes:
        reply = self.producer.reply(timeout_s)
        assert reply is not None, "no reply in time"
        return reply

    def result(self) -> ingest_pb2.StepResult:
        return ingest_pb2.StreamResponse.FromString(self.reply()).result

    def batch(self, batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        """Post a batch whose tensors lie in the slot beside it."""
        message, tensors = placed(batch)
        self.post(ingest_pb2.StreamRequest(step_batch=message), tensors)
        return self.result()

    def close(self) -> None:
        self.stream.cancel()
        self.ring.close()


def fetch(path: str, ticket: bytes) -> Descriptors:
    """Say the ticket; fails the test if the sidecar refuses."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(TIMEOUT_S)
        end.connect(path)
        end.sendall(ticket)
        told, descriptors, _, _ = socket.recv_fds(end, 1, 3)
    assert told == b"\1", told
    return Descriptors(*descriptors)


def placed(batch: ingest_pb2.StepBatch) -> tuple[ingest_pb2.StepBatch, bytes]:
    """The batch with every inline payload moved behind the message, and what is then behind it."""
    made, tensors = ingest_pb2.StepBatch(), b""
    made.CopyFrom(batch)
    spans = []
    for one in made.tensors:
        kind = one.WhichOneof("payload")
        if kind not in ("raw", "projected"):
            continue
        data = getattr(one, kind)
        span = getattr(one, f"{kind}_slot")
        span.offset, span.size = len(tensors), len(data)
        spans.append(span)
        tensors += data + b"\0" * (-len(data) % ALIGN)
    start = 0
    while True:  # the offsets are part of the message whose length they follow
        grown = ingest_pb2.StreamRequest(step_batch=made).ByteSize()
        if aligned(grown) == start:
            return made, tensors
        for span in spans:
            span.offset += aligned(grown) - start
        start = aligned(grown)
