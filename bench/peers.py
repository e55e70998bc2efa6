"""Clients that send a step and wait for its answer, by the ring and by gRPC."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any, Protocol, Self

import grpc

from bench.artifacts import BENCH_MODEL
from bench.steps import ENGINE, Message
from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.address import REGISTER, STREAM
from sidecar.ring import Producer
from sidecar.tap.ring_join import join_ring

_WAIT_S = 60.0


class Peer(Protocol):
    """``ready`` does what need not be timed; ``step`` sends what it made and returns the serialised answer.

    Leaving the context says goodbye to the server.
    """

    def ready(self, message: Message) -> Any: ...

    def step(self, made: Any) -> bytes: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class GrpcPeer:
    """A long-lived stream to any server that answers every message, after one message of its own."""

    def __init__(self, address: str, width: int = 0, engine: str = ENGINE) -> None:
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )
        grpc.channel_ready_future(self._channel).result(timeout=_WAIT_S)
        if width:
            self._register(width, engine)
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = self._channel.stream_stream(STREAM, None, None)
        self._replies: Iterator[bytes] = iter(call(message for message in iter(self._requests.get, None)))
        self.first: bytes = next(self._replies)

    def _register(self, width: int, engine: str) -> None:
        model = control_pb2.ModelIdentity(**{**BENCH_MODEL, "width": width})
        request = control_pb2.RegisterRequest(engine_id=engine, model=model).SerializeToString()
        self._channel.unary_unary(REGISTER, None, None)(request, timeout=_WAIT_S)

    def ready(self, message: Message) -> bytes:
        return message.inline()

    def step(self, made: bytes) -> bytes:
        self._requests.put(made)
        return next(self._replies)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        list(self._replies)  # to the end
        self._channel.close()


class RingPeer:
    """A tap's data plane by hand: the stream stays silent, every step goes into a slot."""

    def __init__(self, address: str, width: int, engine: str = ENGINE) -> None:
        self._stream = GrpcPeer(address, width, engine)
        ticket = ingest_pb2.StreamResponse.FromString(self._stream.first).control.ring_ticket
        self.ring = join_ring(address, ticket)
        self.producer = Producer(self.ring)

    def ready(self, message: Message) -> Message:
        return message

    def step(self, made: Message) -> bytes:
        self.post(made)
        return self.answer()

    def post(self, message: Message) -> None:
        """Raises RuntimeError if every slot is taken."""
        slot = self.producer.reserve()
        if slot is None:
            raise RuntimeError("no free slot")
        self.producer.post(*message.write(slot))

    def answer(self) -> bytes:
        reply = self.producer.reply(_WAIT_S)
        if reply is None:
            raise TimeoutError("no answer")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ring.close()
        self._stream.__exit__()


def check_scored(reply: bytes) -> None:
    """Raises RuntimeError: what is not scored must not be timed."""
    result = ingest_pb2.StreamResponse.FromString(reply).result
    if result.outcome != ingest_pb2.OUTCOME_SCORED:
        raise RuntimeError(f"a step was not scored: {result.reason} {result.field}")
