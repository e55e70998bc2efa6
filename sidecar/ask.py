"""For a caller that waits: what shall become of these requests? Answered in time, whatever the sidecar does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError

from protos.stethoscope.v1 import ingest_pb2
from sidecar.address import OBSERVE
from sidecar.types import Action

_MAX_WITHIN_S = 3600.0
_MAX_BYTES = 64 << 20
_DETAILS = 200  # of the sidecar's own text
_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_BYTES),
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Until a connection is tried again every call fails at once, and gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_ACTIONS = {ingest_pb2.Action.Value(f"ACTION_{action.name}"): action for action in Action}
_REFUSALS = frozenset(
    {"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
)


class DecidedBy(StrEnum):
    """Whose actions an answer has: the sidecar's, which has read, or the policy's for the case that nobody has in time."""

    SIDECAR = "sidecar"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Finding:
    """One signal over its threshold: calibrated probability and threshold, both 0 to 1."""

    name: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do with one request, and which signals that rests on: read, skipped and late are names."""

    action: Action
    signals: tuple[Finding, ...] = ()
    read: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    late: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Advice for every request of the batch, by its id. ``why`` is empty if the sidecar decided."""

    verdicts: Mapping[str, Advice]
    decided_by: DecidedBy
    why: str = ""


class Asker:
    """Asks one sidecar for verdicts and never waits longer than it was told, by its own clock. Thread-safe.

    The engine of the batches must be registered (ControlService.Register) by whoever makes them. Every question ends in one
    of three counts: asked = decided + late + refused once no question is open.
    """

    def __init__(self, address: str, at_deadline: Action | str = Action.ALLOW) -> None:
        """at_deadline: the action if no verdict is there in time: allow (fail open) or block (fail closed)."""
        self.at_deadline = Action(at_deadline)
        if self.at_deadline not in (Action.ALLOW, Action.BLOCK):
            raise ValueError("at_deadline: want allow or block")
        self._address = address
        self._channel: grpc.Channel | None = None
        self._call: Callable[..., Any] | None = None
        self._lock = threading.Lock()  # guards the counts
        self.asked = 0
        self.decided = 0
        self.late = 0  # no verdict in time: too slow, frozen, dead, or shed
        self.refused = 0  # the sidecar says that the batch is wrong: the caller's own mistake

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Make the channel; the first question connects it. Twice is fine."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(self._address, options=_OPTIONS)
            self._call = self._channel.unary_unary(OBSERVE, request_serializer=None, response_deserializer=None)

    def stop(self) -> None:
        """Close the channel: open questions are answered as late. Twice is fine."""
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            channel.close()

    def ask(self, step_batch: ingest_pb2.StepBatch, within_s: float) -> Answer:
        """The sidecar's verdicts, or the policy's if none is there within_s after the call. The batch is not changed.

        Whatever goes wrong on the way becomes an answer. Raises ValueError for a within_s that is not in (0, 3600], and
        RuntimeError before ``start``.
        """
        deadline_s = time.monotonic() + within_s
        if not 0 < within_s <= _MAX_WITHIN_S:
            raise ValueError("within_s: want more than 0 and at most 3600")
        call = self._call
        if call is None:
            raise RuntimeError("start() comes before ask()")
        with self._lock:
            self.asked += 1
        try:
            result = _observe(call, step_batch, deadline_s)
        except grpc.RpcError as error:
            return self._fall_back(step_batch, error.code().name, error.details() or "")
        except DecodeError:
            return self._fall_back(step_batch, "UNKNOWN", "the answer is no sidecar's")
        except ValueError:  # what a channel raises that was closed meanwhile
            if self._call is call:
                raise
            return self._fall_back(step_batch, "CANCELLED", "stopped")
        return self._read(step_batch, result)

    def _read(self, batch: ingest_pb2.StepBatch, result: ingest_pb2.StepResult) -> Answer:
        """A request without advice, as of a batch that was dropped, gets the policy's."""
        open_or_closed = Advice(self.at_deadline)
        said = {one.request_id: _advice(one) for one in result.verdicts if one.action in _ACTIONS}
        verdicts = {one: said.get(one, open_or_closed) for one in batch.segments.request_ids}
        decided = result.outcome == ingest_pb2.OUTCOME_SCORED and not result.late and said.keys() >= verdicts.keys()
        with self._lock:
            self.decided += decided
            self.late += not decided
        if decided:
            return Answer(verdicts, DecidedBy.SIDECAR)
        return Answer(verdicts, DecidedBy.DEADLINE, result.reason or "no verdict")

    def _fall_back(self, batch: ingest_pb2.StepBatch, code: str, details: str) -> Answer:
        refused = code in _REFUSALS
        with self._lock:
            self.refused += refused
            self.late += not refused
        advice = Advice(self.at_deadline)
        why = f"{code}: {details[:_DETAILS]}"
        return Answer(dict.fromkeys(batch.segments.request_ids, advice), DecidedBy.DEADLINE, why)


def _observe(call: Callable[..., Any], batch: ingest_pb2.StepBatch, deadline_s: float) -> ingest_pb2.StepResult:
    """One Observe within what is left of the time. A deadline that has passed is gRPC's to tell, too."""
    request = ingest_pb2.ObserveRequest(step_batch=batch)
    left_s = max(0.0, deadline_s - time.monotonic())
    request.step_batch.verdict_within_us = max(1, int(left_s * 1e6))
    raw = call(request.SerializeToString(), timeout=max(0.0, deadline_s - time.monotonic()))
    return ingest_pb2.ObserveResponse.FromString(raw).result


def _advice(verdict: ingest_pb2.Verdict) -> Advice:
    return Advice(
        _ACTIONS[verdict.action],
        tuple(Finding(one.name, one.score, one.threshold) for one in verdict.signals),
        tuple(verdict.read),
        tuple(verdict.skipped),
        tuple(verdict.late),
    )
