"""The identity at every scrape, and what the sidecar counted, from /metrics and from the ledger's own file."""

from __future__ import annotations

import http.client
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sidecar.ledger import LedgerCounts, LedgerFile
from tests.faults.full.driven import Sets
from tests.service.client import Served

_SERIES = re.compile(r'^stethoscope_(step_batches|rows)_(\w+?)(?:_total)?(?:\{reason="(\w+)"\})? (\S+)$', re.MULTILINE)


@dataclass
class Counts:
    """One side of the ledger, as a scrape shows it."""

    received: int = 0
    scored: int = 0
    in_flight: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def outcomes(self) -> int:
        return self.scored + self.dropped.total() + self.rejected.total()


def of_ledger(side: LedgerCounts) -> Counts:
    dropped = Counter({reason.value: count for reason, count in side.dropped.items() if count})
    rejected = Counter({reason.value: count for reason, count in side.rejected.items() if count})
    return Counts(side.received, side.scored, side.in_flight, dropped, rejected)


def ledger(home: Path) -> tuple[Counts, Counts]:
    """Step batches and rows over the data directory's whole life. No sidecar may be running on it."""
    file = LedgerFile(home / "run" / "sidecar.sock.ledger")
    file.open()
    try:
        batches, rows = file.counts()
    finally:
        file.close()
    return of_ledger(batches), of_ledger(rows)


def scrape(served: Served, timeout_s: float = 5.0) -> dict[str, Counts]:
    """Step batches and rows as /metrics shows them now."""
    connection = http.client.HTTPConnection("127.0.0.1", served.metrics_port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = {"step_batches": Counts(), "rows": Counts()}
    for unit, word, reason, value in _SERIES.findall(text):
        number = int(float(value))
        if reason and number:
            getattr(found[unit], word)[reason] = number
        elif not reason:
            setattr(found[unit], word, number)
    return found


class Watch:
    """Scrapes on a thread of its own; leaving it fails with the first scrape that did not add up.

    most: step batches that can be on their way at once: slots of all rings, and those in work.
    """

    def __init__(self, served: Served, *, most: int, every_s: float = 0.1) -> None:
        self._served = served
        self._most = most
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.wrong: list[str] = []
        self.scrapes = self.missed = self.most_in_flight = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        self._thread.join(30.0)
        if kind is None:
            assert not self.wrong, self.wrong
            assert self.scrapes, f"{self.missed} scrapes missed"

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                found = scrape(self._served, 2.0)
            except (OSError, http.client.HTTPException):  # frozen or gone on purpose: counted
                self.missed += 1
                continue
            self.scrapes += 1
            for unit, one in found.items():
                if one.received != one.outcomes + one.in_flight or one.in_flight < 0:
                    self.wrong.append(f"{unit}: {one}")
            in_flight = found["step_batches"].in_flight
            self.most_in_flight = max(self.most_in_flight, in_flight)
            if in_flight > self._most:
                self.wrong.append(f"{in_flight} in flight of {self._most} at most")


def reconcile(counts: Counts, *journals: Sets, killed: int = 0) -> None:
    """The sidecar's counts are the sizes of the taps' sets; what was never answered may be in any of them, or in none.

    counts: of the data directory's whole life, nothing in flight. killed: how many may be booked as process_killed.
    """
    for sets in journals:
        sets.check()
    unknown = sum(len(sets.unknown) for sets in journals)
    scored = sum(len(sets.ended("scored")) for sets in journals)
    dropped = sum((sets.reasons("dropped") for sets in journals), Counter[str]())
    rejected = sum((sets.reasons("rejected") for sets in journals), Counter[str]())
    counted = counts.dropped - Counter(process_killed=counts.dropped["process_killed"])
    assert counts.received == counts.outcomes, counts
    excess = (
        (counts.scored - scored) + (counted.total() - dropped.total()) + (counts.rejected.total() - rejected.total())
    )
    assert counts.scored >= scored, (counts, scored)
    assert not dropped - counted, (counts, dropped)
    assert not rejected - counts.rejected, (counts, rejected)
    assert excess + counts.dropped["process_killed"] <= unknown, (excess, counts, unknown)
    assert counts.received <= sum(len(sets.sent) for sets in journals)
    assert counts.dropped["process_killed"] <= killed


def of_stopped(line: dict[str, Any], counts: Counts) -> Counts:
    """The sidecar's last words, which name no reasons: those are taken from ``counts`` if they add up to what it says."""
    assert line["balanced"] is True
    dropped = counts.dropped if counts.dropped.total() == line["dropped"] else Counter(unlike=line["dropped"])
    rejected = counts.rejected if counts.rejected.total() == line["rejected"] else Counter(unlike=line["rejected"])
    return Counts(line["received"], line["scored"], line["in_flight"], dropped, rejected)
