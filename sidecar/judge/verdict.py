"""What is said of a request."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.types import Action, RequestId


@dataclass(frozen=True, slots=True)
class FlaggedSignal:
    """One signal over its threshold."""

    name: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one request. A signal with stale evidence never flags.

    ``read``, ``skipped`` and ``late`` name every signal once if somebody waits for the verdict, and are empty otherwise.
    """

    request_id: RequestId
    action: Action
    signals: tuple[FlaggedSignal, ...] = ()
    read: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
