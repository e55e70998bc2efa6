"""The processes that run one model: what one of them does to it all must do, or they wait for each other for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sidecar.tap.faults import TapRefusedError
from sidecar.tap.vllm.sites import NotHereError
from sidecar.types import TapPoint

_COME_S = 120.0  # from the first of them to the last: they load their parts of one model, from several disks maybe
_PAUSE_S = 0.02
_YES, _NO = "+", "-"


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of vLLM's groups of processes, and this one's place in it. store: what torch keeps for the group; None if it is alone."""

    rank: int
    size: int
    store: Any = None

    @classmethod
    def of(cls, group: Any) -> Ranks:
        """group: a ``GroupCoordinator``."""
        alone = group.world_size == 1
        return cls(group.rank_in_group, group.world_size, None if alone else group.cpu_group.get_group_store())

    def hear(self, topic: str, word: str, within_s: float = _COME_S) -> list[str]:
        """What each of them says on a topic, by rank. Each speaks once, and waits until all have.

        Raises TapRefusedError if one has not spoken in time, a node without the tap for one; and then in all that did, however
        late: a collective operation that some of them begin and others do not would never end, and has no deadline of ours.
        """
        if self.store is None:
            return [word]
        key = f"stethoscope/{topic}"
        self.store.set(f"{key}/{self.rank}", word)
        last = self.store.add(f"{key}/spoken", 1) == self.size
        if not last:
            _wait(lambda: self.store.check([f"{key}/all"]), within_s)
        # One cell decides, written once: by the last who speaks, or by the first whose patience ends.
        if self.store.compare_set(f"{key}/all", "", "yes" if last else "no") != b"yes":
            raise TapRefusedError(f"not all {self.size} ranks of the model have the tap, or not within {within_s:g} s")
        return [self.store.get(f"{key}/{rank}").decode() for rank in range(self.size)]


def agree(ranks: Ranks, choose: Callable[[], Iterable[TapPoint]]) -> tuple[TapPoint, ...]:
    """The tap points that the first rank chose, in every rank.

    Raises what ``choose`` raises, and then TapRefusedError in all the others; and what ``hear`` does.
    """
    refused: TapRefusedError | NotHereError | None = None
    try:
        word = _YES + ",".join(point.name for point in choose())
    except (TapRefusedError, NotHereError) as why:
        refused, word = why, f"{_NO}{why}"
    said = ranks.hear("tap_points", word)
    if refused is not None:
        raise refused
    for rank, other in enumerate(said):
        if other.startswith(_NO):
            raise TapRefusedError(f"rank {rank} is not tapped: {other.removeprefix(_NO)}")
    return tuple(TapPoint.parse(name) for name in said[0].removeprefix(_YES).split(",") if name)


def _wait(over: Callable[[], bool], within_s: float) -> None:
    """Looks again and again: whoever waits inside a store keeps its other users out."""
    pause, ends_s = threading.Event(), time.monotonic() + within_s
    while not over() and time.monotonic() < ends_s:
        pause.wait(_PAUSE_S)
