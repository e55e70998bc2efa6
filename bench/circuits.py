"""Circuits: ``python -m bench.circuits [--short]``: bench/circuits.json. False alarms, delays and costs, ours beside others'.

One run, the same streams for all. Others are given what they are made for, a number a tick: the tick's mean share, plain and less
the hour of the week's reference. Slow ones run on fewer circuit-months; how many, each row says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import circuit_cost, discovering
from bench.detecting import detect, reference_of
from bench.drift_peers import PEERS, Maker, Peer, alarms
from bench.machine import describe
from bench.row import Row, write
from bench.streams import BOTH, DAY, MONTH, NULLS, SESSIONS, TICK_S, Counts, Kind, Shares, ablated, stream, tick_means
from sidecar.circuits.reference import Reference, hour_of_week
from sidecar.circuits.watch import Settings

RESULTS = Path(__file__).parent / "circuits.json"
OURS = "ours"
PARTS = ("streams", "costs", "sweep")
_WEEKS = 2  # of history that all learn from
_BEGIN = 5 * MONTH  # the streams' first tick
_STREAMS = 20  # of a month each, against one reference
_CAP = 240  # ticks after which an ablation counts as not seen
_COOL_DOWN = Settings().cool_down


@dataclass(frozen=True, slots=True)
class Size:
    """Circuit-months of ours by kind, a share of what peers run on, and runs of an ablation."""

    months: float
    months_both: float
    of_peers: float
    ablations: int


FULL = Size(months=8, months_both=80, of_peers=1.0, ablations=24)
SHORT = Size(months=0.2, months_both=0.2, of_peers=0.005, ablations=2)


@dataclass(frozen=True, slots=True)
class Batch:
    """Months of one kind, and what was learned of two weeks of it. residual: tick means less the hour's reference."""

    counts: Counts  # [streams, T, k+1]
    reference: Reference
    sound: Shares  # [T'], tick means of the history
    sound_residual: Shares

    def means(self, at: int, *, residual: bool) -> Shares:
        means = tick_means(self.counts[at])
        return means - _expected(self.reference, _BEGIN, len(means)) if residual else means


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

    def row(self, name: str) -> Row:
        note = f"{self.alarms} in {self.months:g} circuit-months"
        return Row(name, self.alarms / self.months, interval=self.interval, note=note)


def batches(kind: Kind, months: float, seed: int) -> Iterator[Batch]:
    """At most 20 months at a time, each with a reference of its own."""
    rng = np.random.default_rng(seed)
    while months > 0:
        history = stream(kind, _WEEKS * 7 * DAY, rng)[0]
        reference = reference_of(history)
        streams = max(1, min(_STREAMS, round(months)))
        ticks = round(MONTH * min(1.0, months))
        sound = tick_means(history)
        yield Batch(
            stream(kind, ticks, rng, streams=streams, begin=_BEGIN),
            reference,
            sound[np.isfinite(sound)],
            (sound - _expected(reference, 0, len(sound)))[np.isfinite(sound)],
        )
        months -= streams


def measure(size: Size, only: Collection[str] = PARTS) -> Iterator[Row]:
    """Rows in the order of the table."""
    short = size is SHORT
    if "streams" in only:
        yield from _streams(size)
    if "costs" in only:
        yield from circuit_cost.measure(short=short)
    if "sweep" in only:
        yield from discovering.measure(short=short)


def _streams(size: Size) -> Iterator[Row]:
    delays = _delays(size)
    rates: dict[tuple[str, str], Rate] = {}
    for seed, kind in enumerate(NULLS):
        rates |= _rates(kind, size, seed)
    mine = [rate for (who, _), rate in rates.items() if who == OURS]
    whole = Rate(sum(one.alarms for one in mine), sum(one.months for one in mine))
    yield replace(whole.row("false alarms per 30 d, ours, all null streams"), goal="== 0", met=whole.alarms == 0)
    yield replace(Row("circuit-months of null streams, ours", whole.months).at_least(100), note=f"{len(NULLS)} kinds")
    for (who, kind_name), rate in rates.items():
        yield rate.row(f"false alarms per 30 d, {who}, {kind_name}")
    yield from _delay_rows(delays)
    yield from _margins(rates, delays)


def _rates(kind: Kind, size: Size, seed: int) -> dict[tuple[str, str], Rate]:
    """By who and kind. Others run on the first of the very streams that ours runs on."""
    counted: dict[str, tuple[int, float]] = {OURS: (0, 0.0)}
    for batch in batches(kind, size.months_both if kind is BOTH else size.months, seed):
        found = int(detect(batch.counts, batch.reference, _BEGIN).alarms.sum())
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
    make = _maker(peer, batch, residual=residual)
    for at in range(len(batch.counts)):
        left = round(MONTH * peer.months * size.of_peers - counted.get(name, (0, 0.0))[1])
        if left <= 0:
            return
        values = batch.means(at, residual=residual)[:left]
        _add(counted, name, len(alarms(make, values, _COOL_DOWN)), len(values))


def _add(counted: dict[str, tuple[int, float]], name: str, many: int, ticks: float) -> None:
    before = counted.get(name, (0, 0.0))
    counted[name] = (before[0] + many, before[1] + ticks)


def _maker(peer: Peer, batch: Batch, *, residual: bool) -> Maker:
    return peer.learn(batch.sound_residual if residual else batch.sound)


def _delays(size: Size) -> dict[str, npt.NDArray[np.float64]]:
    """A day or two of diurnal + AR(1), then, at any time of the day, nothing is engaged; slow ones get fewer runs."""
    rng = np.random.default_rng(99)
    found: dict[str, list[float]] = {}
    for run in range(size.ablations):
        batch = next(batches(BOTH, 2 * DAY / MONTH, int(rng.integers(1 << 30))))
        at = int(rng.integers(DAY, 2 * DAY))
        gone = replace(batch, counts=np.concatenate((batch.counts[:1, :at], ablated(_CAP, rng)), axis=1))
        ours = detect(gone.counts, batch.reference, _BEGIN).first[0]
        found.setdefault(OURS, []).append(float(ours - at) if ours > at else np.inf)
        _say(f"ablation {run + 1}: {found[OURS][-1]:g} ticks")
        for name, peer in PEERS.items():
            if peer.months < 5 and run >= max(1, size.ablations // 4):
                continue
            for residual in (False, True):
                ticks = alarms(_maker(peer, batch, residual=residual), gone.means(0, residual=residual), 0)
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
    ours = rates[OURS, BOTH.name].interval[1]
    for (name, kind), rate in rates.items():
        if kind != BOTH.name or name == OURS:
            continue
        row = Row(f"{name}: lower bound / our upper bound of false alarms, {kind}", rate.interval[0] / ours)
        slower = np.median(delays[name]) >= np.median(delays[OURS])
        yield row.at_least(10) if slower else replace(row, note="sees an ablation sooner than ours: no goal")


def _expected(reference: Reference, begin: int, ticks: int) -> Shares:
    hours = np.array([hour_of_week(tick * TICK_S) for tick in range(begin, begin + ticks)])
    found: Shares = reference.mean[hours]
    return found


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
    parser.add_argument("--out", type=Path, help="default: bench/circuits.json for a full run")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=" ".join(PARTS))
    args = parser.parse_args(arguments)
    machine = describe()
    machine["versions"]["river"] = version("river")
    rows = list(measure(SHORT if args.short else FULL, args.only))
    Console(width=190).print(table(rows, machine))
    out = args.out or (None if args.short or set(args.only) != set(PARTS) else RESULTS)
    if out is not None:
        write(machine, rows, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
