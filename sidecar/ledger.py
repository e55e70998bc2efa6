"""Nothing is lost: every step batch, and every row, ends in exactly one outcome and is booked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sidecar.errors import DropReason, RejectReason


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """One side of the ledger at one moment; ``balanced`` is the identity that every scrape must show."""

    received: int
    scored: int
    dropped: Mapping[DropReason, int]
    rejected: Mapping[RejectReason, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        return self.received == (
            self.scored + sum(self.dropped.values()) + sum(self.rejected.values()) + self.in_flight
        )


class Account:
    """Integer counts of one unit (step batches, or rows). Not locked: its owner is the pipeline's lock.

    >>> account = Account()
    >>> account.receive(3); account.score(2); account.drop(DropReason.SCORE_NON_FINITE, 1)
    >>> account.counts().balanced, account.counts().in_flight
    (True, 0)
    """

    def __init__(self) -> None:
        self._received = 0
        self._scored = 0
        self._in_flight = 0
        self._dropped = dict.fromkeys(DropReason, 0)
        self._rejected = dict.fromkeys(RejectReason, 0)

    def receive(self, n: int) -> None:
        self._received += n
        self._in_flight += n

    def score(self, n: int) -> None:
        self._scored += n
        self._in_flight -= n

    def drop(self, reason: DropReason, n: int) -> None:
        self._dropped[reason] += n
        self._in_flight -= n

    def reject(self, reason: RejectReason, n: int) -> None:
        self._rejected[reason] += n
        self._in_flight -= n

    def counts(self) -> LedgerCounts:
        return LedgerCounts(
            self._received,
            self._scored,
            MappingProxyType(dict(self._dropped)),
            MappingProxyType(dict(self._rejected)),
            self._in_flight,
        )


class Ledger:
    """The two accounts: step batches, and rows (one row is one token at one tap point)."""

    def __init__(self) -> None:
        self.step_batches = Account()
        self.rows = Account()
