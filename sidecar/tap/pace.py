"""When the sender wakes: rarely, because each time it takes the interpreter from the engine's thread."""

from __future__ import annotations

import math


class Pace:
    """Steps go together: the sender sleeps until one has waited for ``linger_s``, and for as long after it has sent.

    Guarded by its owner's lock. All times are monotonic seconds.
    """

    def __init__(self, linger_s: float) -> None:
        self._linger_s = linger_s
        self._next_s = math.inf  # when the sender looks again by itself, having sent
        self._wakes_s = -math.inf  # until when it sleeps; it is awake, or waits for something else than steps

    def hurry(self) -> None:
        """From here on nothing lingers."""
        self._linger_s = 0.0

    @property
    def lingers(self) -> bool:
        return self._linger_s > 0

    def due_s(self, oldest_s: float) -> float:
        """When what waits since then is to be sent."""
        return min(self._next_s, oldest_s + self._linger_s)

    def must_wake(self, since_s: float) -> bool:
        """Whether the sender would sleep too long for what waits since then."""
        return since_s + self._linger_s < self._wakes_s

    def sent(self, now_s: float) -> None:
        self._next_s = now_s + self._linger_s

    def sleep(self, now_s: float, until_s: float, oldest_s: float) -> float:
        """Until when to sleep for steps, if there is something else to do at ``until_s``, and steps wait since ``oldest_s``."""
        if self._next_s <= now_s:
            self._next_s = math.inf  # nothing came: the engine pauses, and its next step wakes us
        self._wakes_s = min(until_s, self.due_s(oldest_s))
        return self._wakes_s

    def awake(self) -> None:
        self._wakes_s = -math.inf
