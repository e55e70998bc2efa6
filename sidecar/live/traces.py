"""Traces of the sessions that an alarm rests on: ids only, a few, for whoever looks into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

from sidecar.circuits.reference import Band
from sidecar.circuits.sessions import Bets
from sidecar.circuits.watch import Alarm
from sidecar.traceparent import parse_traceparent
from sidecar.types import IndexArray

KEPT = 8  # of each circuit, slice and number of tokens that were engaged; and of an alarm, at most
_MAX_CHARS = 256  # a longer header is none


Number = TypeVar("Number", int, IndexArray)


class Traces:
    """The newest bets whose request had a trace, at most ``KEPT`` of each kind. Owned by the pipeline's thread.

    A header is noted as it came, when its session bets, which a session does once; it is parsed if an alarm asks for it.
    """

    def __init__(self) -> None:
        self._bets: dict[int, deque[tuple[int, str]]] = {}  # by kind: tick and header, the newest last

    def note(self, bets: Bets, headers: Sequence[str], tick: int) -> None:
        """headers: by session of the step, of a request of that session in it; "" where there is none."""
        kinds = _kind(bets.circuits, bets.slices, bets.engaged).tolist()
        for kind, session in zip(kinds, bets.sessions.tolist(), strict=True):
            header = headers[session]
            if header and len(header) <= _MAX_CHARS:
                if kind not in self._bets:
                    self._bets[kind] = deque(maxlen=KEPT)
                self._bets[kind].append((tick, header))

    def of(self, alarm: Alarm, circuit: int, part: int, band: Band) -> tuple[str, ...]:
        """Trace ids of sessions that bet since the alarm's checkpoint and beyond the band, on the side that it leans to.

        Those farthest beyond come first, of these the newest. circuit, part: the alarm's circuit and slice, as places in the bank.
        band: at the alarm. Fewer or none where requests had no trace, or bet in a process before this one.
        """
        found = (
            parent.trace_id
            for engaged in _beyond(band, alarm.watched.tokens, alarm.leans)
            for tick, header in reversed(self._bets.get(_kind(circuit, part, engaged), ()))
            if alarm.since.tick < tick <= alarm.tick and (parent := parse_traceparent(header)) is not None
        )
        return tuple(islice(dict.fromkeys(found), KEPT))


def _kind(circuit: Number, part: Number, engaged: Number) -> Number:
    """One number for all three: slices are 8 at most, tokens of a bet too."""
    return (circuit << 8) | (part << 4) | engaged


def _beyond(band: Band, k: int, leans: str) -> list[int]:
    """How many of the k tokens are engaged in a bet beyond the band on that side, the farthest first."""
    if leans == "more":
        return [engaged for engaged in range(k, -1, -1) if engaged > k * band.high]
    return [engaged for engaged in range(k + 1) if engaged < k * band.low]
