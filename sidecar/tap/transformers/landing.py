"""Pinned memory that a device's rows are copied into while nobody waits, used again and again."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch

_LEAST = 12  # bits: a page
_KEPT = 4  # free pieces of one size; further ones go back to torch, which keeps them for whoever asks next


class Shaped(NamedTuple):
    """A landing's memory as one tensor [P, ...], and its P parts."""

    whole: torch.Tensor
    parts: tuple[torch.Tensor, ...]


class Landing:
    """A piece of pinned memory, and the event after which the device is done with it. One thread fills it at a time."""

    __slots__ = ("_key", "_memory", "_shaped", "done")

    def __init__(self, nbytes: int) -> None:
        with torch.inference_mode(mode=False):  # what is made in inference mode could not be written outside of it
            self._memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.done = event(blocking=True)  # who waits sleeps: by default it spins for as long as the device works
        self._key: tuple[tuple[int, ...], torch.dtype] | None = None
        self._shaped: Shaped | None = None

    @property
    def nbytes(self) -> int:
        return self._memory.numel()

    def shaped(self, shape: tuple[int, ...], dtype: torch.dtype) -> Shaped:
        """Its first bytes as a tensor. Free of charge if it was last used for the same shape."""
        if self._shaped is None or self._key != (shape, dtype):
            used = self._memory[: math.prod(shape) * dtype.itemsize]
            whole = used.view(dtype).view(shape)
            self._key, self._shaped = (shape, dtype), Shaped(whole, tuple(whole.unbind(0)))
        return self._shaped


class Landings:
    """Landings of one device that are free: some of each size, sizes being powers of two.

    torch has such a pool too, for twice the calls to the driver: it cannot know that the same event will do again.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[Landing]] = {}

    def take(self, nbytes: int) -> Landing:
        """For the engine's thread alone. Never waits: a piece that the device still uses is left to torch."""
        size = 1 << max(_LEAST, (nbytes - 1).bit_length())
        free = self._free.get(size)
        if free is None:
            free = self._free[size] = deque(maxlen=_KEPT)
        if free:
            landing = free.popleft()
            if landing.done.query():  # type: ignore[no-untyped-call]  # torch leaves it so
                return landing
        return Landing(size)

    def give(self, landing: Landing) -> None:
        """On any thread; its event has been recorded behind everything that the device does with it."""
        self._free[landing.nbytes].append(landing)


class Landed:
    """A copy that is on its way. Its memory is free again when nobody refers to this any more."""

    __slots__ = ("_landing", "_pool", "_waiting")

    def __init__(self, landing: Landing, pool: Landings) -> None:
        self._landing = landing
        self._pool = pool
        self._waiting = True

    def wait(self) -> None:
        """Until it has arrived. Other threads of Python run meanwhile."""
        if self._waiting:
            self._landing.done.synchronize()
            self._waiting = False

    def __del__(self) -> None:
        self._pool.give(self._landing)


def event(*, blocking: bool = False) -> torch.cuda.Event:
    made: torch.cuda.Event = torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]  # torch leaves it so
    return made
