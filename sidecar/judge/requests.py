"""The requests whose scores are running: bounded in number and in age, least recently seen goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from sidecar.traceparent import parse_traceparent
from sidecar.types import EngineId, Medium, RequestId, Segments, TraceParent

Key = tuple[EngineId, RequestId]


@dataclass(slots=True)
class Tracked:
    """One request on its way. Its running scores are in the arrays, at ``slot``."""

    key: Key
    slot: int
    started_ns: int
    traceparent: TraceParent | None
    route: str
    canary: bool
    adapter: str  # applied to the model: its states are those of other weights
    weight: int = 1  # how many requests it stands for
    seen_s: float = 0.0
    tokens_seen: int = 0
    tokens_unseen: int = 0
    media: dict[Medium, int] = field(default_factory=dict)  # tokens seen that are no text
    flagged: set[int] = field(default_factory=set)  # indices of signals that crossed their threshold


class RequestTable:
    """Maps (engine, request) to a slot. Keys are compared whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: OrderedDict[Key, Tracked] = OrderedDict()
        self._free = list(range(limit - 1, -1, -1))
        self.traceparents_ignored = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, key: Key) -> bool:
        return key in self._requests

    @property
    def full(self) -> bool:
        return not self._free

    @property
    def oldest(self) -> Key:
        return next(iter(self._requests))

    def find(self, key: Key) -> Tracked | None:
        """The request, if it is tracked; it is now the newest."""
        found = self._requests.get(key)
        if found is not None:
            self._requests.move_to_end(key)
        return found

    def add(self, key: Key, segments: Segments, index: int, now_ns: int, weight: int = 1) -> Tracked:
        """Track a request from its first segment on, which tells who it is. There must be room."""
        made = Tracked(
            key,
            self._free.pop(),
            now_ns,
            self._parent(segments, index),
            segments.routes[index] if segments.routes else "",
            bool(segments.canaries) and segments.canaries[index],
            segments.adapters[index] if segments.adapters else "",
            weight,
        )
        self._requests[key] = made
        return made

    def _parent(self, segments: Segments, index: int) -> TraceParent | None:
        header = segments.traceparents[index] if segments.traceparents else ""
        if not header:
            return None
        found = parse_traceparent(header, segments.tracestates[index] if segments.tracestates else "")
        self.traceparents_ignored += found is None
        return found

    def end(self, key: Key) -> Tracked | None:
        """Forget the request and free its slot; the caller reads what it needs of the slot before the next ``add``."""
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

    def slots(self) -> list[int]:
        return [request.slot for request in self._requests.values()]

    def open(self) -> list[Key]:
        return list(self._requests)
