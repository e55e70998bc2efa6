"""A bounded line between a thread that must never wait and one that may."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """First in, first out, at most ``limit`` long. Putting never waits; taking does, for a batch or for a while.

    >>> backlog = Backlog[int](2); [backlog.put(n) for n in range(3)], backlog.close(), backlog.take(5, 0.0)
    ([True, True, False], None, [0, 1])
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._wanted = limit
        self._closed = False

    def put(self, item: Item) -> bool:
        """Add an item. False if the backlog is full or closed: the item is the caller's to account for."""
        with self._changed:
            if self._closed or len(self._items) >= self._limit:
                return False
            self._items.append(item)
            if len(self._items) >= self._wanted:
                self._changed.notify_all()
            return True

    def take(self, most: int, wait_s: float) -> list[Item]:
        """Take up to ``most`` items, once so many are there, ``wait_s`` is over or the backlog is closed."""
        with self._changed:
            self._wanted = min(most, self._limit)
            self._changed.wait_for(lambda: self._closed or len(self._items) >= self._wanted, wait_s)
            return [self._items.popleft() for _ in range(min(most, len(self._items)))]

    def close(self) -> None:
        """Take no more items; what is there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self._items)
