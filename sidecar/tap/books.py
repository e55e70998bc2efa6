"""The tap's ledger."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sidecar.tap.traffic import TrafficMeter
from sidecar.types import TapLedgerCounts, UnseenReason


@dataclass(slots=True)
class Books:
    """Counts over all streams of a tap: sent = ok + refused + unknown once idle. Owner: ``lock``."""

    traffic: TrafficMeter
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    ok: int = 0
    refused: int = 0
    unknown: int = 0
    dropped: int = 0
    errors: int = 0
    ends_lost: int = 0  # ends of requests that the sidecar was not told: it finds them idle by itself

    def counts(self) -> TapLedgerCounts:
        with self.lock:
            return TapLedgerCounts(self.sent, self.ok, self.refused, self.unknown, self.dropped)

    def fail(self) -> None:
        with self.lock:
            self.errors += 1

    def lose_ends(self, requests: int) -> None:
        with self.lock:
            self.ends_lost += requests

    def send(self) -> None:
        with self.lock:
            self.sent += 1

    def settle(self, *, refused: bool) -> None:
        """A batch was answered."""
        with self.lock:
            self.refused += refused
            self.ok += not refused

    def lose(self, batches: int, tokens: int) -> None:
        """Batches that were sent and will not be answered."""
        with self.lock:
            self.unknown += batches
        self.traffic.miss(UnseenReason.TAP_DROPPED, tokens)

    def drop(self, tokens: int) -> None:
        """A batch that never reached the wire."""
        with self.lock:
            self.dropped += 1
        self.traffic.miss(UnseenReason.TAP_DROPPED, tokens)
