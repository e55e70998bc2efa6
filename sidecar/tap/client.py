"""The tap's way to the sidecar: never blocks, never raises and never retries; what it cannot deliver it counts."""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any

import grpc

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar import address as paths
from sidecar.tap import wire
from sidecar.tap.address import ENGINE_VARIABLE
from sidecar.tap.books import Books
from sidecar.tap.limits import LinkLimits
from sidecar.tap.link import Link
from sidecar.tap.plan import FetchedPlan
from sidecar.tap.plan_fetcher import PlanFetcher
from sidecar.tap.ring_join import RingRefusedError, join_ring
from sidecar.tap.ring_post import RingPost
from sidecar.tap.sender import Sender
from sidecar.tap.step import CapturedStep
from sidecar.tap.traffic import TrafficMeter
from sidecar.tap.verdict import Listeners, OnVerdict
from sidecar.tap.wire import Settings
from sidecar.types import Mode, ModelIdentity, SamplingPolicy, TapLedgerCounts

log = logging.getLogger("stethoscope.tap")

_REGISTER_S = 5.0
_POLL_S = 0.1
_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 2.0
_END_S = 2.0
_PARTING_S = 5.0  # so long may the sidecar take to notice that our own last stream has ended
_DETAILS = 200  # of the sidecar's own text
_ADVICE = {
    "ALREADY_EXISTS": f"another process is connected as engine id {{}}; give each its own by {ENGINE_VARIABLE}",
    "FAILED_PRECONDITION": "it reads another model than this engine ({}) serves; start a sidecar for each model",
}
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 256 << 20),  # a plan: 1000 directions of width 8192 at 8 tap points
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # every connection starts clean: the pauses between them are ours
)


class TapClient:
    """Delivers captured steps to one sidecar for one engine.

    ``submit`` is for engine threads; everything that talks to the network runs on threads of the client's own. While no
    sidecar is connected every step is dropped and counted; the client looks for one again with growing pauses up to 2 s.
    Batches go by a ring of shared memory if the sidecar offers one at a Unix socket, else, and when the ring ends, by gRPC.
    There are no keep-alive pings: a peer on this machine is gone at once or not at all, and a frozen one is found by the
    answers that it owes.
    """

    def __init__(
        self,
        address: str,
        identity: ModelIdentity,
        *,
        engine_id: str,
        traffic: TrafficMeter | None = None,
        limits: LinkLimits | None = None,
    ) -> None:
        self.engine_id = engine_id
        self.traffic = traffic if traffic is not None else TrafficMeter()
        self.settings = Settings()
        self._address = address
        self._identity = identity
        self._limits = limits if limits is not None else LinkLimits()
        self._books = Books(self.traffic)
        self._link: Link | None = None  # set while connected
        self._plans: PlanFetcher | None = None  # of the connection
        self._listeners = Listeners(self._books.fail)
        self._off = False
        self._stop = threading.Event()
        self._jitter = random.Random()  # noqa: S311 - no secret; and the host's own generator is the host's
        self._ending = False
        self._deadline_s = math.inf  # of the farewell
        self._thread: threading.Thread | None = None
        self._told = ("", "")
        self._parted_s = -math.inf  # when our own last stream ended

    def start(self) -> None:
        """Connect in the background. Returns at once, whether or not a sidecar is there."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="stethoscope-tap", daemon=True)
        _watch_process(self)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Send what waits, say goodbye and end the threads, all within timeout_s. Twice is fine."""
        if self._off or self._thread is None:
            return
        self._deadline_s = min(self._deadline_s, time.monotonic() + timeout_s)
        self._stop.set()
        self._thread.join(timeout_s + 4 * _POLL_S)

    def end_soon(self) -> None:
        """Stop without waiting. Takes no lock, so that a finalizer may call it from anywhere."""
        self._deadline_s = min(self._deadline_s, time.monotonic() + _END_S)
        self._ending = True

    def submit(self, step: CapturedStep) -> bool:
        """Hand a step over. False, and counted as dropped, if the queue is full or no sidecar is connected."""
        if self._off:
            return False
        link = self._link
        if link is not None and link.offer(step):
            return True
        self._books.drop(step.tokens)
        return False

    def forgo(self, tokens: int) -> None:
        """Count a step that was not even captured, because nobody was there to take it."""
        if not self._off:
            self._books.drop(tokens)

    def finish(self, request_ids: Iterable[str]) -> None:
        """Tell the sidecar that requests ended, behind every batch submitted before."""
        link = self._link
        ids = tuple(request_ids)
        if not ids or self._off:
            return
        if link is None:
            self._books.lose_ends(len(ids))
        else:
            link.finish(ids)

    @property
    def ends_lost(self) -> int:
        """Ends of requests that the sidecar was not told: it finds them idle by itself, later."""
        return self._books.ends_lost

    @property
    def connected(self) -> bool:
        """True between a stream's first answer and its end."""
        return self._link is not None and not self._off

    @property
    def off(self) -> bool:
        """True in a child of fork: the tap of the parent has no threads here."""
        return self._off

    @property
    def policy(self) -> SamplingPolicy:
        return self.settings.policy

    @property
    def congested(self) -> bool:
        """True while a step would hardly be sent in time: whoever asks first need not copy its rows. Takes no lock."""
        link = self._link
        return link is not None and not self._off and link.congested

    @property
    def plan(self) -> FetchedPlan | None:
        """The newest plan of this connection that was fetched; None until then, and if the sidecar does not ask for readings.

        It may be behind ``settings.plan_generation`` for a moment: the sidecar reads earlier generations as well.
        """
        plans = self._plans
        return None if plans is None or self.settings.mode is not Mode.PROJECTED else plans.plan

    def on_verdict(self, listener: OnVerdict) -> None:
        """Call the listener for every request that the sidecar flags, on the thread that takes its answers.

        It must be quick: until it returns no other answer is taken. What it raises is counted, and goes to the log once.
        """
        self._listeners.add(listener)
        link = self._link
        if link is not None:
            link.hurry()

    def counts(self) -> TapLedgerCounts:
        return self._books.counts()

    @property
    def errors(self) -> int:
        """Bugs of the client's own that it survived."""
        return self._books.errors

    # the client's own thread

    @property
    def _leaving(self) -> bool:
        return self._ending or self._stop.is_set()

    def _run(self) -> None:
        pause_s = _BACKOFF_S
        while not self._leaving:
            try:
                if self._session():
                    pause_s = _BACKOFF_S
            except grpc.RpcError as error:
                self._tell_refusal(error)
            except Exception:  # the tap outlives its own bugs: the engine goes on, the steps are counted as dropped
                self._books.fail()
                log.exception("tap_session_failed")
            self._stop.wait(self._jitter.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, _MAX_BACKOFF_S)

    def _session(self) -> bool:
        """One connection from registration to its end. True if it was ever connected."""
        with grpc.insecure_channel(self._address, options=_CHANNEL_OPTIONS) as channel:
            fetch = channel.unary_unary(paths.FETCH_PLAN, request_serializer=None, response_deserializer=None)
            self._plans = plans = PlanFetcher(lambda raw, limit_s: fetch(raw, timeout=limit_s), self._books)
            try:
                self._register(channel)
                return self._stream(channel)
            finally:
                plans.close()
                self._plans = None

    def _stream(self, channel: grpc.Channel) -> bool:
        link = Link(self._books, self._limits)
        open_stream = channel.stream_stream(paths.STREAM, request_serializer=None, response_deserializer=None)
        call = open_stream(Sender(self.engine_id, link, self._books).messages())
        reader = threading.Thread(target=self._read, args=(call, link), name="stethoscope-tap-answers", daemon=True)
        reader.start()
        self._supervise(reader, link)
        connected = self._link is link
        link.close()
        call.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it so
        reader.join(_REGISTER_S)
        self._link = None
        self._parted_s = time.monotonic()
        self._tell("disconnected", _code(call))
        return connected

    def _register(self, channel: Any) -> None:
        report = wire.traffic_report(self.engine_id, self.traffic.counts(), self.counts())
        request = wire.register_request(self.engine_id, self._identity, report)
        call = channel.unary_unary(paths.REGISTER, request_serializer=None, response_deserializer=None)
        response = control_pb2.RegisterResponse.FromString(call(request, timeout=_REGISTER_S))
        for artifact in response.artifacts:
            if artifact.reason:
                log.warning("artifact name=%s evidence=%s reason=%s", artifact.name, artifact.evidence, artifact.reason)

    def _supervise(self, reader: threading.Thread, link: Link) -> None:
        """Until the stream ends by itself, after a farewell that we ask for, or because it must."""
        asked = False
        while reader.is_alive() and time.monotonic() < self._deadline_s:
            if self._leaving and not asked:
                asked = True
                link.stop(self._deadline_s)
            if link.stalled():
                self._tell("stalled", "answers are overdue")
                return
            reader.join(_POLL_S)

    def _read(self, call: Any, link: Link) -> None:
        """The stream's answers, on a thread of their own. The first one proves that somebody is there."""
        try:
            for number, raw in enumerate(call):
                if self._link is None and not self._leaving:
                    if self._listeners:
                        link.hurry()
                    # Before the settings: whatever hooks capture by them is taken. It goes once the way is agreed.
                    self._link = link
                    self._tell("connected", self._address)
                response = self._take(raw, link)
                if not number:
                    self._agree(response.control, link)
        except grpc.RpcError:
            return  # why the stream ended is told by the thread that made it
        except Exception:
            self._books.fail()
            log.exception("tap_answer_failed")

    def _take(self, raw: bytes, link: Link) -> ingest_pb2.StreamResponse:
        """One answer, by whichever way it came."""
        response = ingest_pb2.StreamResponse.FromString(raw)
        if response.HasField("result"):
            link.answer(response.result)
            for verdict in wire.verdicts(response.result) if self._listeners else ():
                self._listeners.tell(*verdict)
        elif response.HasField("control"):
            self._apply(response.control)
        return response

    def _agree(self, control: ingest_pb2.Control, link: Link) -> None:
        """Take the ring that is offered, if it can be had; everything else goes by gRPC."""
        ring, why = None, "no ring is offered"
        if control.ring_ticket:
            try:
                ring = join_ring(self._address, control.ring_ticket)
            except RingRefusedError as refused:
                why = str(refused)
        post = None if ring is None else RingPost(ring, self._books, lambda raw: self._take(raw, link), link.nudge)
        if post is not None:
            post.start()
        agreed = link.agree(post)
        if post is not None and not agreed:
            post.close()
            why = "the ring was not agreed on in time"
        log.info("transport=%s", "ring" if post is not None and agreed else f"grpc why={why}")

    def _apply(self, control: ingest_pb2.Control) -> None:
        asked = wire.settings(control)
        plans = self._plans
        if plans is not None:
            plans.want(asked.plan_generation if asked.mode is Mode.PROJECTED else 0)
        if asked != self.settings:
            self.settings = asked
            log.info(
                "settings plan=%d tap_points=%s requests=%.4g stride=%d",
                asked.plan_generation,
                ",".join(point.name for point in asked.tap_points),
                asked.policy.request_fraction,
                asked.policy.token_stride,
            )

    def _tell(self, state: str, why: str, level: int = logging.INFO) -> None:
        """Log a change of state once."""
        if (state, why) != self._told:
            self._told = (state, why)
            log.log(level, "%s why=%s", state, why)

    def _tell_refusal(self, error: Any) -> None:
        code = _code(error)
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            self._tell("no_sidecar", code)
        elif code == "ALREADY_EXISTS" and time.monotonic() - self._parted_s < _PARTING_S:
            self._tell("reconnecting", "our last stream has not ended there yet")
        else:  # it is there and does not want us: somebody has to act
            advice = _ADVICE.get(code, "the sidecar refuses this engine").format(self.engine_id)
            why = f"{code}: {str(error.details())[:_DETAILS]}: {advice}; the engine runs untapped, the tap keeps trying"
            self._tell("registration_refused", why, logging.ERROR)

    def _after_fork(self) -> None:
        """In the child: no thread of the tap exists here and its locks may be held for ever, so touch none of them."""
        self._off = True
        self._link = None


def _code(error: Any) -> str:
    code = error.code() if callable(getattr(error, "code", None)) else None
    return "unknown" if code is None else code.name


_CLIENTS: weakref.WeakSet[TapClient] = weakref.WeakSet()
_WATCHED = threading.Event()


def _watch_process(client: TapClient) -> None:
    """Turn the client off in children of fork, and end its stream with a goodbye when the process ends."""
    _CLIENTS.add(client)
    if not _WATCHED.is_set():
        _WATCHED.set()
        os.register_at_fork(after_in_child=_turn_off)
        atexit.register(_stop_all)


def _turn_off() -> None:
    for client in _CLIENTS:
        client._after_fork()  # noqa: SLF001 - the class's own module


def _stop_all() -> None:
    for client in list(_CLIENTS):
        client.stop(_END_S)
