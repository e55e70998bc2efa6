"""The requests whose scores are running: bounded in number and in age, least recently seen goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from sidecar.types import EngineId, RequestId, Segment, TraceParent

Key = tuple[EngineId, RequestId]


@dataclass(slots=True)
class Tracked:
    """One request on its way. Its running scores are in the arrays, at ``slot``."""

    key: Key
    slot: int
    started_ns: int
    seen_s: float
    traceparent: TraceParent | None
    route: str
    canary: bool
    tokens_seen: int = 0
    tokens_unseen: int = 0
    flagged: set[int] = field(default_factory=set)  # indices of signals that crossed their threshold


class RequestTable:
    """Maps (engine, request) to a slot. Keys are compared whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: OrderedDict[Key, Tracked] = OrderedDict()
        self._free = list(range(limit - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._requests)

    def touch(self, key: Key, segment: Segment, now_s: float, now_ns: int) -> tuple[Tracked, Tracked | None]:
        """The request, made if new, and the one that had to go to make room for it."""
        evicted: Tracked | None = None
        found = self._requests.get(key)
        if found is None:
            if not self._free:
                evicted = self.end(next(iter(self._requests)))
            found = Tracked(key, self._free.pop(), now_ns, now_s, segment.traceparent, segment.route, segment.canary)
            self._requests[key] = found
        else:
            self._requests.move_to_end(key)
        found.seen_s = now_s
        found.tokens_seen += segment.stop - segment.start
        found.tokens_unseen += sum(tokens for _, tokens in segment.unseen)
        return found, evicted

    def end(self, key: Key) -> Tracked | None:
        """Forget the request and free its slot; the caller reads what it needs of the slot before the next ``touch``."""
        found = self._requests.pop(key, None)
        if found is not None:
            self._free.append(found.slot)
        return found

    def idle_since(self, before_s: float) -> list[Key]:
        """Requests not seen since, oldest first."""
        idle = []
        for key, request in self._requests.items():
            if request.seen_s >= before_s:
                break
            idle.append(key)
        return idle

    def renumber(self, signals: dict[int, int]) -> None:
        """After a reload: flags of signals that went on, old index to new; the others' flags are forgotten."""
        for request in self._requests.values():
            request.flagged = {signals[index] for index in request.flagged if index in signals}

    def open(self) -> list[Key]:
        return list(self._requests)
