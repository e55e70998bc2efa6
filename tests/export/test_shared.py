from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sidecar.export.shared import Shared
from tests.waiting import until

DEADLINE_S = 10.0


class Kitchen:
    """Makes numbered dishes, each only when told, and sees how many are made at once."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.made = 0
        self._alone = threading.Lock()
        self.overlapped = False

    def make(self) -> int:
        if not self._alone.acquire(blocking=False):
            self.overlapped = True
        self.begun.release()
        assert self.go.acquire(timeout=DEADLINE_S)
        self.made += 1
        dish = self.made
        self._alone.release()
        return dish


def test_who_asks_while_one_is_being_made_shares_the_next_and_never_gets_the_old_one() -> None:
    kitchen = Kitchen()
    shared = Shared(kitchen.make)
    arrived = threading.Semaphore(0)

    def ask() -> int:
        arrived.release()
        return shared.get()

    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask)
        assert kitchen.begun.acquire(timeout=DEADLINE_S)
        late = [pool.submit(ask) for _ in range(8)]
        for _ in range(9):
            assert arrived.acquire(timeout=DEADLINE_S)
        until(lambda: shared._next is not None)
        for _ in range(9):
            kitchen.go.release()
        assert first.result(DEADLINE_S) == 1
        assert min(future.result(DEADLINE_S) for future in late) == 2
    assert kitchen.made <= 3  # a late thread may ask only after the shared one has begun: that is one more
    assert not kitchen.overlapped


def test_what_is_raised_is_raised_to_everyone_and_the_next_is_made_anew() -> None:
    broken = True

    def make() -> str:
        if broken:
            raise RuntimeError("once")
        return "well"

    shared = Shared(make)
    with pytest.raises(RuntimeError, match="once"):
        shared.get()
    broken = False
    assert shared.get() == "well"


def test_one_after_the_other_each_gets_its_own() -> None:
    numbers = iter(range(5))
    shared = Shared(lambda: next(numbers))
    assert [shared.get() for _ in range(5)] == [0, 1, 2, 3, 4]
