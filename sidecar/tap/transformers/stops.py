"""Generations that end because the sidecar's verdict on their request is BLOCK."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from sidecar.types import Action

_LIVE = 65536  # requests under way at once; an engine has thousands at most
_STOPPED = 1024  # remembered until whoever serves them has asked


class Stops:
    """Which requests are under way, and how each of them is stopped.

    Engine threads ``heed`` and ``forget``; ``verdict`` comes on the client's own thread and only passes the order on: the
    engine ends the request by its own means, between two steps, and then it is booked. A verdict on a request that is not
    under way changes nothing, so one that comes late cannot end a later request of the same name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._live: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._stopped = 0

    def heed(self, wire_id: str, stop: Callable[[], None]) -> None:
        """From now on a BLOCK on this request calls ``stop``, once, on the client's thread."""
        with self._lock:
            self._ended.pop(wire_id, None)
            self._live[wire_id] = stop
            if len(self._live) > _LIVE:
                self._live.popitem(last=False)

    def forget(self, wire_id: str) -> None:
        """The request has ended."""
        with self._lock:
            self._live.pop(wire_id, None)

    def verdict(self, wire_id: str, action: Action, _signals: tuple[str, ...]) -> None:
        """What the sidecar advises; all but BLOCK stays advice."""
        if action is not Action.BLOCK:
            return
        with self._lock:
            stop = self._live.pop(wire_id, None)
        if stop is not None:
            stop()

    def book(self, wire_id: str) -> None:
        """The engine has ended the request on our order."""
        with self._lock:
            self._stopped += 1
            self._ended[wire_id] = None
            if len(self._ended) > _STOPPED:
                self._ended.popitem(last=False)

    def claim(self, wire_id: str) -> bool:
        """Whether it was stopped; said once."""
        with self._lock:
            return self._ended.pop(wire_id, self) is None

    @property
    def stopped(self) -> int:
        """Requests whose generation was ended by a verdict."""
        with self._lock:
            return self._stopped
