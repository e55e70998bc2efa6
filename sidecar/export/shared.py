"""One piece of work for everyone who asks for it at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Shared(Generic[Made]):
    """Calls ``make`` by one thread at a time, and once for all who wait for it.

    What get() returns was begun after get() was called, so nobody gets an old answer: who comes while one is being made
    shares the next. However many ask, nobody waits for more than two.

    >>> Shared(lambda: "page").get()
    'page'
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._turn = threading.Lock()  # held while making
        self._lock = threading.Lock()  # of the field below
        self._next: Future[Made] | None = None  # asked for and not yet begun

    def get(self) -> Made:
        """Return what is made. Raises what ``make`` raised, to everyone who shares it."""
        with self._lock:
            answer = self._next
            if answer is not None:
                mine = False
            else:
                mine, answer = True, Future()
                self._next = answer
        if mine:
            self._answer(answer)
        return answer.result()

    def _answer(self, answer: Future[Made]) -> None:
        with self._turn:
            with self._lock:
                self._next = None
            try:
                answer.set_result(self._make())
            except Exception as bug:  # noqa: BLE001 - raised again by result(), to the caller and whoever shares it
                answer.set_exception(bug)
