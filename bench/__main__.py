"""``python -m bench``: the table, bench/results.json, docs/scaling.png and the figures of docs/sizing.md.

``--short`` takes a minute and a half, prints, and writes only what ``--out`` names; ``--only NAME ...`` measures some parts.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import plot, scaling, sizing
from bench.machine import describe
from bench.row import Row, write

_RESULTS = Path(__file__).parent / "results.json"
_DOCS = Path(__file__).parents[1] / "docs"
# In the order of the table; each has measure(short=...) -> rows.
PARTS = {
    "transport": "bench.transport",
    "echo": "bench.echo",
    "product": "bench.product",
    "sklearn": "bench.sklearn_probes",
    "scrape": "bench.scrape",
    "overload": "bench.overload",
    "projected": "bench.projected",
    "exact": "bench.exact",
    "engine": "bench.engine",
}
_CAPTION = "ratios are of one run, round by round in turns; intervals are 95 %, bootstrapped over rounds"
PAGES = ("scaling", "sizing")  # which also go into docs/


def main(arguments: list[str] | None = None) -> int:
    """0 whether goals are met or not: they are printed as they are."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="fewer rounds: for a look, not for the record")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *PAGES], default=[*PARTS, *PAGES], metavar="NAME")
    parser.add_argument("--out", type=Path, help="results file (default: bench/results.json for a full run)")
    args = parser.parse_args(arguments)
    whole = not args.short and len(args.only) == len(PARTS) + len(PAGES)
    machine = describe()
    rows = list(_measure(args.only, short=args.short, machine=machine, docs=_DOCS if whole else None))
    Console(width=190).print(table(rows, machine))
    out = args.out if args.out is not None else (_RESULTS if whole else None)
    if out is not None:
        write(machine, rows, out)
    return 0


def _measure(parts: list[str], *, short: bool, machine: dict[str, Any], docs: Path | None) -> Iterator[Row]:
    """docs: where pictures and pages are renewed; None for a run that is not for the record."""
    for name in parts:
        begun_s = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        if name == "scaling":
            curves = scaling.measure_all(short=short)
            yield from scaling.rows_of(curves)
            if docs is not None:
                plot.draw(curves, machine, docs / "scaling.png")
        elif name == "sizing":
            sizes = sizing.measure_all(short=short)
            yield from sizing.rows_of(sizes)
            if docs is not None:
                sizing.write_page(sizes, machine, docs / "sizing.md")
        else:
            yield from importlib.import_module(PARTS[name]).measure(short=short)
        print(f"{time.monotonic() - begun_s:.0f} s", file=sys.stderr)


def table(rows: list[Row], machine: dict[str, Any]) -> Table:
    where = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), {machine['kernel']}"
    made = Table(title=f"{where}, load {machine['load_before']}", caption=_CAPTION)
    for name in ("figure", "value", "95 %", "goal", "", "note"):
        made.add_column(name, justify="right" if name in ("value", "goal") else "left")
    for row in rows:
        interval = "" if row.interval is None else rf"\[{row.interval[0]:.3g}, {row.interval[1]:.3g}]"
        met = "" if row.met is None else ("[green]met[/green]" if row.met else "[red]MISSED[/red]")
        value = f"{row.value:,.0f}" if abs(row.value) >= 1000 else f"{row.value:.3g}"
        made.add_row(row.name, value, interval, row.goal or "", met, row.note)
    return made


if __name__ == "__main__":
    sys.exit(main())
