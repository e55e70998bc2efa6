"""Fit a baseline: means and half-widths from an archive, and the smallest tolerance under which a replay of it stays silent.

Each day is replayed against what the other days taught, in one run over all of them, with the very detector that will watch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.circuits.baseline import MOST, BaselineManifest, Levels, State, save_baseline
from probes.errors import LabError
from sidecar.circuits.archive import ArchiveError, digest_of, read_archives
from sidecar.circuits.detector import BETS, NOTHING, RUN_LENGTH, Fixed, advance, betting_table, log_e, log_threshold
from sidecar.circuits.merge import SketchError, merge
from sidecar.circuits.reference import WEEK, Reference, hour_of_week
from sidecar.circuits.tick import Counts, TickRow
from sidecar.errors import ArtifactError

TOLERANCES = (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3)
AT_LEAST = 0.05
COVERED = 152  # hours of the week, nine in ten, in which sessions bet: with fewer the week is not known
_DAY_S, _WEEK_S = 86_400, 604_800
_PARTS = 10  # of a history that is one bucket: each is left out in turn
_FEW = 200  # sessions: an hour with fewer is taken together with the same hour of other days
_Z = 2.576  # 99 % of a normal distribution lie within
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Options:
    """at_least: no tolerance below it is tried, for a short history is silent by luck. buckets: 168, or 1 for a demo.

    armed: what was learned may page, however little it is. The demo's own: no command sets it. skip_unsound: archives that
    cannot be read are passed over.
    """

    buckets: int = WEEK
    at_least: float = AT_LEAST
    run_length: int = RUN_LENGTH
    armed: bool = False
    skip_unsound: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """One circuit. ticks: [T], increasing; evidence: [T, S, k+1]."""

    name: str
    spec_hash: str
    slices: tuple[str, ...]
    tick_s: int
    ticks: Counts
    evidence: Counts

    def buckets(self, options: Options) -> npt.NDArray[np.intp]:
        """[T], each tick's."""
        if options.buckets == 1:
            return np.zeros(len(self.ticks), np.intp)
        return np.array([hour_of_week(tick * self.tick_s) for tick in self.ticks.tolist()], np.intp)

    @property
    def knows_the_week(self) -> bool:
        """Whether it is as long as a week, and sessions bet in nine in ten of the week's hours, be it in one week or in several."""
        bet = self.ticks[self.evidence.any(axis=(1, 2))] * self.tick_s
        hours = {hour_of_week(at_s) for at_s in bet.tolist()}
        return int(self.ticks[-1] - self.ticks[0] + 1) * self.tick_s >= _WEEK_S and len(hours) >= COVERED

    def parts(self, options: Options) -> npt.NDArray[np.intp]:
        """[T], from 0: the day, or the tenth, that is left out where the tick is replayed."""
        if options.buckets == 1:
            return np.arange(len(self.ticks)) * _PARTS // len(self.ticks)
        return np.unique(self.ticks * self.tick_s // _DAY_S, return_inverse=True)[1].astype(np.intp)


def fit_baseline(
    archives: Sequence[Path], out: Path, options: Options, told: Callable[[Sequence[str]], None] = lambda _: None
) -> BaselineManifest:
    """Write the baseline of every circuit in the archives. Raises LabError, also for sketches of two models or specs.

    told: is called with the archives that were passed over.
    """
    rows, digests, unsound = _read(archives, skip_unsound=options.skip_unsound)
    told(unsound)
    histories = _histories(rows)
    models = {row.key.model_hash for row in rows}
    if len(models) > 1:
        raise LabError(f"the archives are of {len(models)} models: a baseline is of one")
    fitted = [_fit(one, options) for one in histories]
    first, last = min(int(one.ticks[0]) for one in histories), max(int(one.ticks[-1]) for one in histories)
    fields: dict[str, Any] = {
        "model_hash": models.pop(),
        "tick_s": histories[0].tick_s,
        "buckets": options.buckets,
        "state": _state(histories, options),
        "first_tick": first,
        "last_tick": last,
        "left_out": int(min(one.parts(options).max() for one in histories)) + 1,
        "run_length": options.run_length,
        "archives": sorted(set(digests)),
        "circuits": [fields for fields, _ in fitted],
    }
    found = [levels for _, levels in fitted]
    try:
        return save_baseline(out, fields, _together(found))
    except ArtifactError as error:
        raise LabError(f"{out}: {error.text}") from None


def _together(found: Sequence[Levels]) -> Levels:
    """Circuit after circuit, in the order of the manifest's rows."""
    names = ("mean", "half_width", "sessions")
    return Levels(**{name: np.concatenate([getattr(one, name) for one in found]) for name in names})


def _state(histories: Sequence[History], options: Options) -> State:
    """One for all: what is known of the circuit that is known least. One bucket knows no hour of the week."""
    known = options.buckets == WEEK and all(one.knows_the_week for one in histories)
    return State.FROZEN if known or options.armed else State.LEARNING


def _read(archives: Sequence[Path], *, skip_unsound: bool) -> tuple[tuple[TickRow, ...], list[str], tuple[str, ...]]:
    """Rows, digests of the files that they are from, and what was passed over."""
    try:
        read = read_archives(archives, skip_unsound=skip_unsound)
        return merge(read.rows).rows, [digest_of(path) for path in read.files], read.unsound
    except (ArchiveError, SketchError) as error:
        raise LabError(str(error)) from None


def _histories(rows: Sequence[TickRow]) -> list[History]:
    """Those of circuits in which a session bet at all."""
    found = []
    for name in sorted({row.key.circuit for row in rows}):
        own = [row for row in rows if row.key.circuit == name]
        slices = tuple(sorted({row.key.slice for row in own}))
        ticks = np.array(sorted({row.key.tick for row in own}))
        evidence = np.zeros((len(ticks), len(slices), own[0].shape.tokens + 1), np.int64)
        places = np.searchsorted(ticks, [row.key.tick for row in own])
        evidence[places, [slices.index(row.key.slice) for row in own]] = [row.evidence for row in own]
        if not evidence.any():
            raise LabError(f"{name}: no session has bet in {len(ticks)} ticks; {_why_nobody_bets(own)}")
        found.append(History(name, own[0].key.spec_hash, slices, own[0].key.tick_s, ticks, evidence))
    return found


def _why_nobody_bets(rows: Sequence[TickRow]) -> str:
    """As far as sketches tell: a session that ends before it bets is counted, one that nobody named is not."""
    short, tokens = sum(row.single("short") for row in rows), rows[0].shape.tokens
    too_large = "is k too large for this traffic?"
    if short:
        return f"{short} ended with fewer than the {tokens} tokens that a bet takes: {too_large}"
    return (
        f"none ended with fewer than the {tokens} tokens that a bet takes. Most likely no request names its session: see who "
        "bets in docs/circuits.md, or set circuits.requests_are_sessions=true. Or sessions still go on with fewer: "
        + too_large
    )


def _fit(history: History, options: Options) -> tuple[dict[str, Any], Levels]:
    buckets, parts = history.buckets(options), history.parts(options)
    if not parts.any():
        raise LabError(
            f"{history.name}: one day, or one tick, is nothing to compare with itself; --one-bucket is for demos"
        )
    by_part = np.zeros((parts.max() + 1, options.buckets, *history.evidence.shape[1:]), np.int64)
    np.add.at(by_part, (parts, buckets), history.evidence)
    whole = by_part.sum(axis=0)
    found = levels(whole)
    tolerances = _tolerances(found, options)
    if not tolerances:
        raise LabError(f"no tolerance of {options.at_least:g} or more is tried: the largest is {TOLERANCES[-1]:g}")
    highest = _replay(history, [levels(whole - part) for part in by_part], (buckets, parts), tolerances)
    limit = log_threshold(options.run_length, len(history.slices))
    silent = np.flatnonzero(highest.max(axis=1) < limit)
    if not len(silent):
        raise LabError(
            f"{history.name}: a replay alarms even at a tolerance of {tolerances[-1]:g}: its traffic does not repeat by the week. "
            "Slice it, or take history without the incident"
        )
    at = int(silent[0])
    fields = {
        "name": history.name,
        "spec_hash": history.spec_hash,
        "tokens": history.evidence.shape[-1] - 1,
        "slices": history.slices,
        "sessions": history.evidence.sum(axis=(0, 2)).tolist(),
        "tolerance": tolerances[at],
        "highest": round(max(0.0, float(highest[at].max()) / limit), 4),
    }
    return fields, found


def _tolerances(found: Levels, options: Options) -> list[float]:
    """Those to be tried: one at which most bands reach down to 0 would stay silent because it is blind to an ablation.

    Where even the least is, the circuit is so seldom engaged that only canaries can see it go.
    """
    reach = float(np.median(found.mean - found.half_width))
    return [one for one in TOLERANCES if one >= options.at_least and (one < reach or options.at_least >= reach)]


def levels(evidence: Counts) -> Levels:
    """evidence: [buckets, S, k+1]. Means, half-widths and sessions [S, buckets], as they are kept.

    The half-width is 2.58 standard errors, and 3 / n for what a few sessions did not show.
    """
    came = np.minimum(evidence.sum(axis=-1), MOST)
    if len(evidence) == WEEK:
        few = evidence.sum(axis=-1, keepdims=True) < _FEW
        same_hour = np.tile(evidence.reshape(7, 24, *evidence.shape[1:]).sum(axis=0), (7, 1, 1))
        evidence = np.where(few, same_hour, evidence)
    tokens = evidence.shape[-1] - 1
    x = np.arange(tokens + 1) / tokens
    many = evidence.sum(axis=-1)
    n = np.maximum(many, 1)
    mean = evidence @ x / n
    spread = np.maximum(evidence @ x**2 / n - mean**2, 0.0)
    width = np.where(many >= 2, np.minimum(_Z * np.sqrt(spread / n) + 3 / n, 1.0), 1.0)
    return Levels(*(one.T.astype(np.float32) for one in (mean, width, came)))


def _replay(
    history: History, left_out: Sequence[Levels], at: tuple[Any, Any], tolerances: Sequence[float]
) -> npt.NDArray[np.int64]:
    """[tolerances, S], the highest log E over all ticks in turn."""
    shape = (len(tolerances), len(history.slices))
    log_m = np.full((*shape, BETS), NOTHING)
    highest = np.full(shape, NOTHING)
    for tick, table in enumerate(_tables(left_out, at, tolerances, history.evidence.shape[-1] - 1)):
        log_m = advance(log_m, np.broadcast_to(history.evidence[tick], (*shape, table.shape[-2])), table)
        np.maximum(highest, log_e(log_m), out=highest)
    return highest


def _tables(
    left_out: Sequence[Levels], at: tuple[Any, Any], tolerances: Sequence[float], tokens: int
) -> Iterator[Fixed]:
    """[tolerances, S, k+1, 12] of each tick, made anew when the hour or the day changes."""
    before: tuple[int, int] | None = None
    table: Fixed = np.zeros(0, np.int64)
    for bucket, part in zip(*(one.tolist() for one in at), strict=True):
        if (bucket, part) != before:
            mean, width = left_out[part].mean[:, bucket], left_out[part].half_width[:, bucket]
            bands = [
                Reference(np.array([float(m)]), np.array([float(c)]), tolerance).band(0)
                for tolerance in tolerances
                for m, c in zip(mean, width, strict=True)
            ]
            table = betting_table(bands, tokens).reshape(len(tolerances), len(mean), tokens + 1, BETS)
            before = (bucket, part)
        yield table
