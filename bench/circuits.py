"""Circuits: ``python -m bench.circuits [--short]``: bench/circuits.json. False alarms, delays and costs, ours beside others'.

Parts may be run apart (``--only``); in the file each stands beside the machine that it ran on. Streams are of one run, the same
for all. Others are given what they are made for, a number a tick: the tick's mean share, plain and less the hour of the week's
reference. Slow ones run on fewer circuit-months; how many, each row says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import circuit_cost, discovering
from bench.detecting import detect, reference_of
from bench.drift_peers import PEERS, RARE, Peer, alarms
from bench.machine import describe
from bench.row import Row, machine_row
from bench.streams import BOTH, DAY, MONTH, NULLS, SESSIONS, TICK_S, Counts, Kind, Shares, ablated, stream, tick_means
from sidecar.circuits.reference import Reference, hour_of_week
from sidecar.circuits.watch import Settings
from sidecar.types import IndexArray

RESULTS = Path(__file__).parent / "circuits.json"
OURS = "ours"
PARTS = ("streams", "costs", "sweep")
_WEEKS = 2  # of history that all learn from
_BEGIN = 5 * MONTH  # the streams' first tick
_STREAMS = 100  # of a month each, side by side
_CAP = 240  # ticks after which an ablation counts as not seen
_COOL_DOWN = Settings().cool_down


@dataclass(frozen=True, slots=True)
class Size:
    """Circuit-months of ours by kind, a share of what peers run on, and runs of an ablation."""

    months: float
    months_both: float
    of_peers: float
    ablations: int


FULL = Size(months=26, months_both=RARE, of_peers=1.0, ablations=24)
SHORT = Size(months=0.2, months_both=0.2, of_peers=0.005, ablations=2)


@dataclass(frozen=True, slots=True)
class Batch:
    """Streams of one kind. Each has two weeks of history of its own, and a reference that was learned of these.

    residual: tick means less the hour's reference.
    """

    counts: Counts  # [streams, T, k+1]
    histories: Counts  # [streams, T', k+1]
    references: tuple[Reference, ...]

    def means(self, at: int, *, residual: bool) -> Shares:
        return self._means(self.counts[at], _BEGIN, self.references[at] if residual else None)

    def sound(self, at: int, *, residual: bool) -> Shares:
        """Of the history, ticks with sessions only."""
        means = self._means(self.histories[at], 0, self.references[at] if residual else None)
        return means[np.isfinite(means)]

    @staticmethod
    def _means(counts: Counts, begin: int, reference: Reference | None) -> Shares:
        means = tick_means(counts)
        return means if reference is None else means - reference.mean[_hours(begin, len(means))]


@dataclass(frozen=True, slots=True)
class Rate:
    """Alarms in so many circuit-months of 30 days."""

    alarms: int
    months: float

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % Poisson interval of the rate per 30 days (Garwood)."""
        from scipy.stats import chi2

        low = chi2.ppf(0.025, 2 * self.alarms) / 2 if self.alarms else 0.0
        return float(low / self.months), float(chi2.ppf(0.975, 2 * self.alarms + 2) / 2 / self.months)

    @property
    def told(self) -> str:
        return f"{self.alarms:,} in {self.months:,g} circuit-months"

    def row(self, name: str) -> Row:
        return Row(name, self.alarms / self.months, interval=self.interval, note=self.told)


def batches(kind: Kind, months: float, seed: int) -> Iterator[Batch]:
    """At most 100 streams at a time, of a month each."""
    rng = np.random.default_rng(seed)
    while months > 0:
        streams = max(1, min(_STREAMS, round(months)))
        histories = stream(kind, _WEEKS * 7 * DAY, rng, streams=streams)
        counts = stream(kind, round(MONTH * min(1.0, months)), rng, streams=streams, begin=_BEGIN)
        yield Batch(counts, histories, tuple(reference_of(one) for one in histories))
        months -= streams


def measure(size: Size, part: str) -> Iterator[Row]:
    """Rows of one of `PARTS`, in the order of the table."""
    if part == "streams":
        return _streams(size)
    if part == "costs":
        return circuit_cost.measure(short=size is SHORT)
    return discovering.measure(short=size is SHORT)


def _streams(size: Size) -> Iterator[Row]:
    delays = _delays(size)
    rates: dict[tuple[str, str], Rate] = {}
    for seed, kind in enumerate(NULLS):
        rates |= _rates(kind, size, seed)
    # Where a session's mean moves by the hour and wanders as well, one alarm in thousands of months is told as what it is.
    mine = {kind: rate for (who, kind), rate in rates.items() if who == OURS and kind != BOTH.name}
    whole = Rate(sum(one.alarms for one in mine.values()), sum(one.months for one in mine.values()))
    kinds = ", ".join(mine)
    yield replace(whole.row(f"false alarms per 30 d, ours, all of {kinds}"), goal="== 0", met=whole.alarms == 0)
    yield Row(f"circuit-months of ours, all of {kinds}", whole.months).at_least(100)
    for (who, kind_name), rate in rates.items():
        yield rate.row(f"false alarms per 30 d, {who}, {kind_name}")
    yield from _delay_rows(delays)
    yield from _margins(rates, delays)


def _rates(kind: Kind, size: Size, seed: int) -> dict[tuple[str, str], Rate]:
    """By who and kind. Others run on the first of the very streams that ours runs on."""
    counted: dict[str, tuple[int, float]] = {OURS: (0, 0.0)}
    for batch in batches(kind, size.months_both if kind is BOTH else size.months, seed):
        found = int(detect(batch.counts, batch.references, _BEGIN).alarms.sum())
        _add(counted, OURS, found, batch.counts.shape[0] * batch.counts.shape[1])
        for name, peer in PEERS.items():
            for residual in (False, True):
                _run_peer(counted, _named(name, residual=residual), peer, batch, size, residual=residual)
        _say(f"{kind.name}: {counted[OURS][1] / MONTH:g} months, {counted[OURS][0]} alarms of ours")
    return {(name, kind.name): Rate(many, ticks / MONTH) for name, (many, ticks) in counted.items()}


def _run_peer(
    counted: dict[str, tuple[int, float]], name: str, peer: Peer, batch: Batch, size: Size, *, residual: bool
) -> None:
    """On as much of the batch as it has months left."""
    for at in range(len(batch.counts)):
        left = round(MONTH * peer.runs(residual=residual) * size.of_peers - counted.get(name, (0, 0.0))[1])
        if left <= 0:
            return
        values = batch.means(at, residual=residual)[:left]
        make = peer.learn(batch.sound(at, residual=residual))
        _add(counted, name, len(alarms(make, values, _COOL_DOWN)), len(values))


def _add(counted: dict[str, tuple[int, float]], name: str, many: int, ticks: float) -> None:
    before = counted.get(name, (0, 0.0))
    counted[name] = (before[0] + many, before[1] + ticks)


def _delays(size: Size) -> dict[str, npt.NDArray[np.float64]]:
    """A day or two of diurnal + AR(1), then, at any time of the day, nothing is engaged; slow ones get fewer runs."""
    rng = np.random.default_rng(99)
    found: dict[str, list[float]] = {}
    for run in range(size.ablations):
        batch = next(batches(BOTH, 2 * DAY / MONTH, int(rng.integers(1 << 30))))
        at = int(rng.integers(DAY, 2 * DAY))
        gone = replace(batch, counts=np.concatenate((batch.counts[:1, :at], ablated(_CAP, rng)), axis=1))
        ours = detect(gone.counts, batch.references, _BEGIN).first[0]
        found.setdefault(OURS, []).append(float(ours - at) if ours > at else np.inf)
        _say(f"ablation {run + 1}: {found[OURS][-1]:g} ticks")
        for name, peer in PEERS.items():
            if peer.months < 5 and run >= max(1, size.ablations // 4):
                continue
            for residual in (False, True):
                make = peer.learn(batch.sound(0, residual=residual))
                ticks = alarms(make, gone.means(0, residual=residual), 0)
                later = [one - at + 1 for one in ticks if one >= at]
                found.setdefault(_named(name, residual=residual), []).append(later[0] if later else np.inf)
    return {name: np.array(each) for name, each in found.items()}


def _delay_rows(delays: dict[str, npt.NDArray[np.float64]]) -> Iterator[Row]:
    slowest = float(delays[OURS].max()) * SESSIONS
    note = f"{SESSIONS} a tick, after a day or two of diurnal + AR(1); the slowest of {len(delays[OURS])}"
    yield replace(
        Row("sessions until a full ablation is seen, ours", min(slowest, _CAP * SESSIONS)).at_most(160), note=note
    )
    for name, each in delays.items():
        seen = np.isfinite(each)
        unseen = "" if seen.all() else f", {int((~seen).sum())} not within {_CAP}"
        median = float(np.median(np.where(seen, each, _CAP)))
        yield Row(f"ticks until a full ablation is seen, {name}", median, note=f"median of {len(each)}{unseen}")


def _margins(rates: dict[tuple[str, str], Rate], delays: dict[str, npt.NDArray[np.float64]]) -> Iterator[Row]:
    """For every peer that is not faster than ours: the least it can alarm falsely over the most ours can, diurnal + AR(1)."""
    ours, mine = rates[OURS, BOTH.name], float(np.median(delays[OURS]))
    for (name, kind), rate in rates.items():
        if kind != BOTH.name or name == OURS:
            continue
        ratio = rate.interval[0] / ours.interval[1]
        row = Row(f"{name}: lower bound / our upper bound of false alarms, {kind}", ratio)
        theirs = float(np.median(np.minimum(delays[name], _CAP)))
        note = f"{rate.told}, ours {ours.told}; sees an ablation after {theirs:g} ticks, ours after {mine:g}"
        yield replace(row.at_least(10), note=note) if theirs >= mine else replace(row, note=f"{note}: no goal")


@lru_cache(maxsize=8)
def _hours(begin: int, ticks: int) -> IndexArray:
    """[ticks], of the week."""
    return np.array([hour_of_week(tick * TICK_S) for tick in range(begin, begin + ticks)])


def _named(name: str, *, residual: bool) -> str:
    return f"{name}, less the hour" if residual else name


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """0 whether goals are met or not: they are printed as they are."""
    from rich.console import Console

    from bench.__main__ import table

    parser = argparse.ArgumentParser(prog="python -m bench.circuits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--short", action="store_true", help="a minute, for a look: nothing is written but what --out names"
    )
    parser.add_argument("--out", type=Path, help="default: bench/circuits.json; other parts of it stay as they are")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=" ".join(PARTS))
    args = parser.parse_args(arguments)
    out = args.out or (None if args.short else RESULTS)
    for part in args.only:
        machine = describe()
        machine["versions"]["river"] = version("river")
        rows = list(measure(SHORT if args.short else FULL, part))
        Console(width=190).print(table(rows, machine))
        if out is not None:
            put(part, [machine_row(machine), *map(asdict, rows)], out)
    return 0


def put(part: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write one part's rows, under its name, into a file whose other parts stay as they are."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    told = {name: rows if name == part else kept.get(name, []) for name in PARTS}
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
