"""What the worker tells the control process by itself: requests that ended, and how much is asked of the taps."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from sidecar.snapshot import EndedRequest, SignalScore
from sidecar.types import Evidence, Medium, TraceParent

_PACKET = 4 << 20


class Teller:
    """The worker's end. Never waits: what finds no room is counted and gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)
        self.lost = 0
        self._factor = 1.0

    def ended(self, request: EndedRequest) -> None:
        if not self._tell(_packed(request)):
            self.lost += 1

    def sampling(self, factor: float) -> None:
        """Tell a change, and go on telling until it was heard."""
        if factor != self._factor and self._tell(factor):
            self._factor = factor

    def _tell(self, what: Any) -> bool:
        try:
            self._end.send(json.dumps(what).encode())
        except OSError:  # no room, too long, or nobody is there any more
            return False
        return True


def hear(end: socket.socket, ended: Callable[[EndedRequest], None], sampling: Callable[[float], None]) -> None:
    """The control process's end: until the worker is gone."""
    with end:
        while packet := end.recv(_PACKET):
            what = json.loads(packet)
            if isinstance(what, float):
                sampling(what)
            else:
                ended(_unpacked(what))


def _packed(one: EndedRequest) -> list[Any]:
    parent = one.traceparent
    return [
        one.request_id,
        one.engine_id,
        parent and [parent.trace_id, parent.span_id, parent.sampled],
        one.started_ns,
        one.ended_ns,
        one.tokens_seen,
        one.tokens_unseen,
        [[s.name, s.version, s.evidence, s.score, s.threshold, s.flagged, s.readings] for s in one.scores],
        one.ended_by,
        one.route,
        one.canary,
        one.adapter,
        one.media,
    ]


def _unpacked(what: list[Any]) -> EndedRequest:
    request_id, engine_id, parent, started, ended, seen, unseen, scores, ended_by, route, canary, adapter, media = what
    return EndedRequest(
        request_id,
        engine_id,
        None if parent is None else TraceParent(*parent),
        started,
        ended,
        seen,
        unseen,
        tuple(SignalScore(name, version, Evidence(evidence), *numbers) for name, version, evidence, *numbers in scores),
        ended_by,
        route,
        canary,
        adapter,
        tuple((Medium(medium), tokens) for medium, tokens in media),
    )
