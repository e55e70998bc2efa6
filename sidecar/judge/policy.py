"""What a signal over its threshold leads to, and what is said of the signals to a caller that waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from sidecar.config import Verdicts
from sidecar.reading.plan import Plan, Signal
from sidecar.types import Action, BoolArray, IndexArray

_STRENGTH = {action: strength for strength, action in enumerate(Action)}
_DECIDING = (Action.ESCALATE, Action.BLOCK)


class Told(TypedDict):
    """Names of signals, each in one of the three: see Verdict in ingest.proto."""

    read: tuple[str, ...]
    skipped: tuple[str, ...]
    late: tuple[str, ...]


def verdict_signals(verdicts: Verdicts, names: Iterable[str]) -> frozenset[str]:
    """Of these signals, those that can stop or divert a request: the last ones that are given up under load.

    >>> sorted(verdict_signals(Verdicts(signals={"toxic": Action.BLOCK}), ["toxic", "mood"]))
    ['toxic']
    """
    return frozenset(name for name in names if verdicts.signals.get(name, verdicts.default) in _DECIDING)


class Policy:
    """The config's actions, bound to a plan's signals. Owned by the judge's thread.

    A signal that is stale, or that failed a gate before its release, never acts, whatever is configured: read, not judged.
    """

    def __init__(self, verdicts: Verdicts, plan: Plan) -> None:
        self._names = np.array([signal.name for signal in plan.signals], dtype=np.object_)
        self._acts = np.array([signal.may_flag for signal in plan.signals], dtype=np.bool_)
        self._strength = np.array([_STRENGTH[_action(verdicts, signal)] for signal in plan.signals], dtype=np.int8)
        self._last: tuple[tuple[bytes, bytes], Told] | None = None  # what was told last: mostly it is told again
        self.at_deadline = verdicts.at_deadline
        self.unknown = tuple(sorted(set(verdicts.signals).difference(self._names)))  # configured, and no such signal

    def action(self, flagged: IndexArray) -> Action:
        """The strongest action of these signals; allow if there are none. flagged [n]: indices in Plan.signals."""
        strongest = int(self._strength[flagged].max(initial=0))
        return tuple(Action)[strongest]

    def unless_late(self, action: Action, late: BoolArray) -> Action:
        """The action, or the answer at the deadline if that is stronger and a signal that could block or escalate was late.

        late [S]: as for ``told``.
        """
        missed = bool((self._strength[late] >= min(_STRENGTH[one] for one in _DECIDING)).any())
        return max(action, self.at_deadline, key=_STRENGTH.__getitem__) if missed else action

    def told(self, ready: BoolArray, late: BoolArray) -> Told:
        """Which signals were read, skipped or late for one request, by name, in the plan's order.

        ready [S]: has read the request and is to be judged. late [S]: its newest readings were not there in time, which
        counts for more than older ones that were.
        """
        key = (ready.tobytes(), late.tobytes())
        if self._last is None or self._last[0] != key:
            read = ready & self._acts & ~late
            self._last = (
                key,
                Told(
                    read=tuple(self._names[read]),
                    skipped=tuple(self._names[~(read | late)]),
                    late=tuple(self._names[late]),
                ),
            )
        return self._last[1]


def _action(verdicts: Verdicts, signal: Signal) -> Action:
    return verdicts.signals.get(signal.name, verdicts.default) if signal.may_flag else Action.ALLOW
