"""``python -m bench``: the table, and bench/results.json beside it. ``--only service|engine`` runs one half."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.row import Row, write

_RESULTS = Path(__file__).parent / "results.json"


def table(rows: list[Row]) -> Table:
    made = Table(
        title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for name in ("figure", "value", "95 %", "goal", "", "note"):
        made.add_column(name, justify="right" if name in ("value", "goal") else "left")
    for row in rows:
        interval = "" if row.interval is None else f"[{row.interval[0]:.3g}, {row.interval[1]:.3g}]"
        met = "" if row.met is None else ("[green]met[/green]" if row.met else "[red]MISSED[/red]")
        made.add_row(row.name, f"{row.value:.4g}", interval.replace("[", r"\["), row.goal or "", met, row.note)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--only", choices=["service", "engine"])
    parser.add_argument("--out", type=Path, default=_RESULTS)
    args = parser.parse_args()
    rows: list[Row] = []
    if args.only != "engine":
        from bench.service import measure as measure_service

        for width in (576, 4096):
            rows += measure_service(width)
    if args.only != "service":
        from bench.engine import measure as measure_engine

        rows += measure_engine()
    Console(width=170).print(table(rows))
    write(rows, args.out)


if __name__ == "__main__":
    main()
