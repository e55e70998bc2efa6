"""After a deploy: what canaries and traffic say of each circuit since the window was opened, and what is to be done with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sidecar.circuits.archive import read_archive
from sidecar.circuits.canary import LIMIT, Round, compare
from sidecar.circuits.fdr import e_bh
from sidecar.circuits.since import Since, Span, since
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Watched
from sidecar.live.alarms import Canaries
from sidecar.live.canary_file import (
    CanaryFileError,
    in_columns_of,
    read_reference,
    read_round,
    rounds_in,
    shared_groups,
)
from sidecar.live.canary_runner import ROUNDS
from sidecar.live.canary_values import circuit_group, says
from sidecar.live.windows import Window, WindowError, windows

ALPHA = 0.1


class Standing(StrEnum):
    """What became of a circuit."""

    UNCHANGED = "unchanged"
    CHANGED = "CHANGED"
    TRAFFIC = "TRAFFIC CHANGED"
    UNSEEN = "not told yet"


ADVICE = {
    Standing.UNCHANGED: "keep its baseline and its canaries' reference",
    Standing.CHANGED: "validate it again on these weights, then record canaries and fit a baseline anew, and sign them",
    Standing.TRAFFIC: "the model computes what it did: look at the traffic before anything is fitted anew",
    Standing.UNSEEN: "wait for more sessions, or send canaries",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One circuit. rejected: by e-BH over all of them, so its traffic's use of it changed. canaries: of the newest rounds since."""

    since: Since
    rejected: bool
    canaries: Canaries

    @property
    def standing(self) -> Standing:
        """Canaries tell of the model, e-values of its use; without canaries nobody knows which of both it was."""
        if self.canaries is Canaries.MOVED:
            return Standing.CHANGED
        if self.rejected:
            return Standing.TRAFFIC if self.canaries is Canaries.QUIET else Standing.CHANGED
        if self.canaries is Canaries.SILENT and self.since.sessions < self.since.needed:
            return Standing.UNSEEN
        return Standing.UNCHANGED


def newest_window(archive: Path) -> Window:
    """The last one that was opened, closed since or not. Raises WindowError if none was, or the file is unsound."""
    opened = [one for one in windows(archive) if one.from_s < one.until_s]
    if not opened:
        raise WindowError(f"{archive}: no deploy window was ever opened there")
    return opened[-1]


def rows_since(archive: Path, from_s: int) -> Iterator[TickRow]:
    """Of all files that may have any. Raises ArchiveError."""
    for path in sorted(archive.glob("*.parquet")):
        named = re.match(r"sketch-[0-9]+-([0-9]+)-", path.name)
        if named is None or int(named[1]) >= from_s:
            yield from read_archive(path)


def span_of(rows: Iterable[TickRow], from_s: int, tick_s: int, for_s: int | None) -> Span:
    """The whole ticks since, so many as were asked for, else as there are; one at least."""
    first = -(-from_s // tick_s)
    if for_s is not None:
        return Span(first, max(1, for_s // tick_s), tick_s)
    last = max((row.key.tick for row in rows), default=first)
    return Span(first, max(1, last - first + 1), tick_s)


def canary_rounds(archive: Path, reference: Path, from_s: int) -> list[Round]:
    """The rounds since, held against the reference whatever weights they are of: whether these do the same is the question.

    Raises CanaryFileError, also if they are of other prompts or another type of numbers, whose noise is another.
    """
    about, known = read_reference(reference)
    made = []
    for kept in map(read_round, rounds_in(archive / ROUNDS)):
        if kept.about.at_s < from_s:
            continue
        if (kept.about.prompts, kept.about.dtype) != (about.prompts, about.dtype):
            raise CanaryFileError(f"{reference}: its canaries are other prompts, or of another dtype, than those since")
        made.append(compare(known, in_columns_of(about, kept.about, kept.values), shared_groups(about, kept.about)))
    return made


def verdicts(
    rows: Iterable[TickRow], watched: Sequence[Watched], span: Span, rounds: Sequence[Round], alpha: float = ALPHA
) -> list[Verdict]:
    """Every circuit of the baseline. Raises SketchError."""
    told = since(rows, watched, span, alpha)
    specs = {one.circuit: one.spec_hash for one in watched}
    return [
        Verdict(one, rejected, _says(rounds, circuit_group(one.circuit, specs[one.circuit])))
        for one, rejected in zip(told, e_bh([one.log_e for one in told], alpha), strict=True)
    ]


def _says(rounds: Sequence[Round], group: str) -> Canaries:
    """The newest of those that read this circuit."""
    return says([one for one in rounds if not math.isnan(one.distances.get(group, math.nan))], group, LIMIT)
