"""After a deploy: what canaries and traffic say of each circuit since the window was opened, and what is to be done with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sidecar.circuits.archive import ReadRows, read_files
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


ANEW = "validate it on these weights, record canaries, fit a baseline once there is a week of it, and sign them"
UNTIL = "what was made on the weights before does not serve on these, however alike: until then it is stale and pages nobody"
ADVICE = {
    Standing.UNCHANGED: "keep its baseline and its canaries' reference",
    Standing.CHANGED: ANEW,
    Standing.TRAFFIC: "the model computes what it did: look at the traffic before a baseline is fitted",
    Standing.UNSEEN: "wait for more sessions, or for two whole rounds of canaries",
}
ON_OTHER_WEIGHTS = {
    Standing.UNCHANGED: f"it does what it did; all the same, {ANEW}: {UNTIL}",
    Standing.CHANGED: f"{ANEW}: {UNTIL}",
    Standing.TRAFFIC: f"{ADVICE[Standing.TRAFFIC]}; then {ANEW}: {UNTIL}",
    Standing.UNSEEN: f"{ADVICE[Standing.UNSEEN]}; whatever they say, it is stale on these weights: {ANEW}",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One circuit. rejected: by e-BH over all of them, so its traffic's use of it changed. canaries: of the newest rounds since.

    other_weights: whether it was seen on others than its baseline's.
    """

    since: Since
    rejected: bool
    canaries: Canaries
    other_weights: bool = False

    @property
    def standing(self) -> Standing:
        """Canaries tell of the model, e-values of its use; without canaries nobody knows which of both it was.

        Nothing told is no news of health: it is unchanged where canaries were compared and are quiet, or where sessions came enough
        that they would have told if it had stopped.
        """
        if self.canaries is Canaries.MOVED:
            return Standing.CHANGED
        if self.rejected:
            return Standing.TRAFFIC if self.canaries is Canaries.QUIET else Standing.CHANGED
        if self.canaries is Canaries.QUIET or self.since.sessions >= self.since.needed:
            return Standing.UNCHANGED
        return Standing.UNSEEN

    @property
    def advice(self) -> str:
        """What is to be done, for people."""
        return (ON_OTHER_WEIGHTS if self.other_weights else ADVICE)[self.standing]


@dataclass(frozen=True, slots=True)
class Compared:
    """Rounds of canaries, the oldest first, each held against the reference. model_hash: weights of the newest, "" of none."""

    rounds: tuple[Round, ...] = ()
    model_hash: str = ""


def newest_window(archive: Path) -> Window:
    """The last one that was opened, closed since or not. Raises WindowError if none was, or the file is unsound."""
    opened = [one for one in windows(archive) if one.from_s < one.until_s]
    if not opened:
        raise WindowError(f"{archive}: no deploy window was ever opened there")
    return opened[-1]


def rows_since(archive: Path, from_s: int, *, skip_unsound: bool = False) -> ReadRows:
    """Of all files that may have any; those that are not in a file yet are not among them. Raises ArchiveError."""
    return read_files(
        (path for path in sorted(archive.glob("*.parquet")) if _may_hold(path, from_s)), skip_unsound=skip_unsound
    )


def _may_hold(path: Path, from_s: int) -> bool:
    named = re.match(r"sketch-[0-9]+-([0-9]+)-", path.name)
    return named is None or int(named[1]) >= from_s


def ticks_on_disk(rows: Iterable[TickRow], span: Span) -> list[int]:
    """Those of the span of which a file has any row, in their order: a tick in which no token came has none."""
    return sorted({row.key.tick for row in rows if row.key.tick in span})


def span_of(rows: Iterable[TickRow], from_s: int, tick_s: int, for_s: int | None) -> Span:
    """The whole ticks since, so many as were asked for, else as there are; one at least."""
    first = -(-from_s // tick_s)
    if for_s is not None:
        return Span(first, max(1, for_s // tick_s), tick_s)
    last = max((row.key.tick for row in rows), default=first)
    return Span(first, max(1, last - first + 1), tick_s)


def canary_rounds(archive: Path, reference: Path, from_s: int) -> Compared:
    """The rounds since, held against the reference whatever weights they are of: whether these do the same is the question.

    Raises CanaryFileError, also if they are of other prompts, another engine or another type of numbers, whose noise is another.
    """
    about, known = read_reference(reference)
    made, model = [], ""
    for kept in map(read_round, rounds_in(archive / ROUNDS)):
        if kept.about.at_s < from_s:
            continue
        if others := [one for one in kept.about.unlike(about) if one != "weights"]:
            raise CanaryFileError(
                f"{reference}: its canaries are of another {', another '.join(others)} than those since"
            )
        made.append(compare(known, in_columns_of(about, kept.about, kept.values), shared_groups(about, kept.about)))
        model = kept.about.model_hash
    return Compared(tuple(made), model)


def verdicts(
    rows: Iterable[TickRow], watched: Sequence[Watched], span: Span, canaries: Compared, alpha: float = ALPHA
) -> list[Verdict]:
    """Every circuit of the baseline. Raises SketchError."""
    told = since(rows, watched, span, alpha)
    known = {one.circuit: one for one in watched}
    return [
        Verdict(
            one,
            rejected,
            _says(canaries.rounds, circuit_group(one.circuit, known[one.circuit].spec_hash)),
            bool({one.model_hash, canaries.model_hash} - {"", known[one.circuit].model_hash}),
        )
        for one, rejected in zip(told, e_bh([one.log_e for one in told], alpha), strict=True)
    ]


def _says(rounds: Sequence[Round], group: str) -> Canaries:
    """The newest of those that read this circuit."""
    return says([one for one in rounds if not math.isnan(one.distances.get(group, math.nan))], group, LIMIT)
