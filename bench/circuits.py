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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import circuit_cost, discovering
from bench.batches import BEGIN, Batch, batches
from bench.changes import CAP, Change, ablations, falls
from bench.detecting import detect
from bench.drift_peers import PEERS, RARE, Peer, alarms
from bench.machine import describe
from bench.matched import SLACKS, Matched, as_slow, false_alarms
from bench.row import Row, machine_row
from bench.streams import BOTH, DAY, FARTHER, MONTH, NULLS, SESSIONS, Kind
from sidecar.circuits.watch import Settings

RESULTS = Path(__file__).parent / "circuits.json"
OURS = "ours"
PARTS = ("streams", "costs", "sweep")
_COOL_DOWN = Settings().cool_down
_SLOW_MONTHS = 5  # peers that are run on fewer get fewer changes as well

Delays = dict[str, npt.NDArray[np.float64]]  # by who, of each change, in ticks
Counted = dict[str, tuple[int, float]]  # by who: alarms, and in how many ticks


@dataclass(frozen=True, slots=True)
class Size:
    """Circuit-months of ours by kind, a share of what peers run on, and runs of a change."""

    months: float
    months_both: float
    of_peers: float
    changes: int

    def of(self, kind: Kind) -> float:
        return self.months_both if kind is BOTH else self.months


FULL = Size(months=26, months_both=RARE, of_peers=1.0, changes=24)
SHORT = Size(months=0.2, months_both=0.2, of_peers=0.005, changes=2)


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


def measure(size: Size, part: str) -> Iterator[Row]:
    """Rows of one of `PARTS`, in the order of the table."""
    if part == "streams":
        return _streams(size)
    if part == "costs":
        return circuit_cost.measure(short=size is SHORT)
    return discovering.measure(short=size is SHORT)


def _streams(size: Size) -> Iterator[Row]:
    gone = list(ablations(size.changes))
    delays = _delays(gone, "ablation")
    matched = _matched(gone, delays)
    rates: dict[tuple[str, str], Rate] = {}
    for seed, kind in enumerate(NULLS):
        rates |= _rates(kind, size, seed, PEERS, matched)
    # Where a session's mean moves by the hour and wanders as well, one alarm in thousands of months is told as what it is.
    mine = {kind: rate for (who, kind), rate in rates.items() if who == OURS and kind != BOTH.name}
    whole = Rate(sum(one.alarms for one in mine.values()), sum(one.months for one in mine.values()))
    kinds = ", ".join(mine)
    yield replace(whole.row(f"false alarms per 30 d, ours, all of {kinds}"), goal="== 0", met=whole.alarms == 0)
    yield Row(f"circuit-months of ours, all of {kinds}", whole.months).at_least(100)
    for seed, kind in enumerate(FARTHER, len(NULLS)):
        rates |= _rates(kind, size, seed, {}, matched)
    for (who, kind_name), rate in rates.items():
        yield rate.row(f"false alarms per 30 d, {who}, {kind_name}")
    yield from _goal(delays)
    yield from _delay_rows(delays, "a full ablation is", CAP)
    yield from _delay_rows(_delays(list(falls(size.changes)), "fall", matched), "ten points less are", DAY)
    for one in matched:
        note = f"standard deviations of sound traffic; by bisection on the {size.changes} ablations"
        yield Row(f"threshold of {one.name}", one.h, note=note)
    yield from _margins(rates, delays)


def _matched(gone: Sequence[Change], delays: Delays) -> list[Matched]:
    """Their thresholds are of the ablations alone; the streams that they are held against have other seeds. Adds their delays."""
    mine = float(np.median(delays[OURS]))
    made = [as_slow(gone, mine, k, residual=residual) for residual in (False, True) for k in SLACKS]
    for one in made:
        delays[one.name] = np.array([run.of(one.learn, residual=one.residual) for run in gone])
        _say(f"{one.name}: {one.h:.3f}")
    return made


def _rates(
    kind: Kind, size: Size, seed: int, peers: Mapping[str, Peer], matched: Sequence[Matched]
) -> dict[tuple[str, str], Rate]:
    """By who and kind. Others run on the first of the very streams that ours runs on."""
    counted: Counted = {OURS: (0, 0.0)}
    for batch in batches(kind, size.of(kind), seed):
        found = int(detect(batch.counts, batch.references, BEGIN).alarms.sum())
        _add(counted, OURS, found, batch.counts.shape[0] * batch.counts.shape[1])
        for residual in (False, True):
            for name, peer in peers.items():
                _run_peer(counted, _named(name, residual=residual), peer, batch, size, residual=residual)
            together = [one for one in matched if one.residual is residual]
            for one, many in zip(together, false_alarms(batch, together, _COOL_DOWN).tolist(), strict=True):
                _add(counted, one.name, many, batch.counts.shape[0] * batch.counts.shape[1])
        _say(f"{kind.name}: {counted[OURS][1] / MONTH:g} months, {counted[OURS][0]} alarms of ours")
    return {(name, kind.name): Rate(many, ticks / MONTH) for name, (many, ticks) in counted.items()}


def _run_peer(counted: Counted, name: str, peer: Peer, batch: Batch, size: Size, *, residual: bool) -> None:
    """On as much of the batch as it has months left."""
    for at in range(len(batch.counts)):
        left = round(MONTH * peer.runs(residual=residual) * size.of_peers - counted.get(name, (0, 0.0))[1])
        if left <= 0:
            return
        values = batch.means(at, residual=residual)[:left]
        make = peer.learn(batch.sound(at, residual=residual))
        _add(counted, name, len(alarms(make, values, _COOL_DOWN)), len(values))


def _add(counted: Counted, name: str, many: int, ticks: float) -> None:
    before = counted.get(name, (0, 0.0))
    counted[name] = (before[0] + many, before[1] + ticks)


def _delays(changes: Sequence[Change], what: str, matched: Sequence[Matched] = ()) -> Delays:
    """Of ours and of others; those that are slow to run get a quarter of the ablations and no other change."""
    found: dict[str, list[float]] = {}
    for number, run in enumerate(changes):
        found.setdefault(OURS, []).append(run.ours())
        _say(f"{what} {number + 1}: {found[OURS][-1]:g} ticks")
        for name, peer in PEERS.items():
            if peer.months < _SLOW_MONTHS and (what != "ablation" or number >= max(1, len(changes) // 4)):
                continue
            for residual in (False, True):
                found.setdefault(_named(name, residual=residual), []).append(run.of(peer.learn, residual=residual))
        for one in matched:
            found.setdefault(one.name, []).append(run.of(one.learn, residual=one.residual))
    return {name: np.array(each) for name, each in found.items()}


def _goal(delays: Delays) -> Iterator[Row]:
    slowest = float(delays[OURS].max()) * SESSIONS
    note = f"simulated: {SESSIONS} a tick, after a day or two of diurnal + AR(1); the slowest of {len(delays[OURS])}"
    yield replace(
        Row("sessions until a full ablation is seen, ours", min(slowest, CAP * SESSIONS)).at_most(160), note=note
    )


def _delay_rows(delays: Delays, what: str, cap: int) -> Iterator[Row]:
    for name, each in delays.items():
        seen = np.isfinite(each)
        unseen = "" if seen.all() else f", {int((~seen).sum())} not within {cap}"
        median = float(np.median(np.where(seen, each, cap)))
        slowest = f", the slowest {each.max():g}" if seen.all() else ""
        yield Row(f"ticks until {what} seen, {name}", median, note=f"median of {len(each)}{slowest}{unseen}")


def _margins(rates: dict[tuple[str, str], Rate], delays: Delays) -> Iterator[Row]:
    """For every peer that is not faster than ours: the least it can alarm falsely over the most ours can, diurnal + AR(1)."""
    ours, mine = rates[OURS, BOTH.name], float(np.median(delays[OURS]))
    for (name, kind), rate in rates.items():
        if kind != BOTH.name or name == OURS:
            continue
        ratio = rate.interval[0] / ours.interval[1]
        row = Row(f"{name}: lower bound / our upper bound of false alarms, {kind}", ratio)
        theirs = float(np.median(np.minimum(delays[name], CAP)))
        note = f"{rate.told}, ours {ours.told}; sees an ablation after {theirs:g} ticks, ours after {mine:g}"
        yield replace(row.at_least(10), note=note) if theirs >= mine else replace(row, note=f"{note}: no goal")


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
