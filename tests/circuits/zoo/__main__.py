"""``python -m tests.circuits.zoo [--short] [--only toy] [--ticks 240]``: results.json and the table of docs/circuits.md.

Or each model by itself: ``--only toy --out a.json``, ``--only smollm2 --out b.json``, then ``--join a.json b.json``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.circuits.zoo.everything import everything
from tests.circuits.zoo.results import DOCS, RESULTS, joined, put_table, read, write
from tests.circuits.zoo.subjects import SMOLLM2, TOY
from tests.circuits.zoo.zoo import COMMITTED, SHORT, Size, expected


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.circuits.zoo",
        description="What is said of models and traffic to which something happened.",
    )
    parser.add_argument("--short", action="store_true", help="hours that are few, and one week of history; for a look")
    parser.add_argument("--only", choices=(TOY, SMOLLM2))
    parser.add_argument("--seed", type=int, default=1)
    for name in ("runs", "histories", "texts", "ticks", "change"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="run nothing: put these results together")
    given = parser.parse_args()
    if given.join:
        found = joined(given.join)
        write(given.out, found["rows"], Size(**found["size"]), found["seed"])
    else:
        _measure(given)
    if given.out == RESULTS:
        put_table(DOCS, read())
    return 0


def _measure(given: argparse.Namespace) -> None:
    subjects = (given.only,) if given.only else (TOY, SMOLLM2)
    parts = [(one, numerics) for one in subjects for numerics in expected(one)]
    told = {name: value for name, value in vars(given).items() if name in Size.__slots__ and value is not None}
    size = replace(SHORT if given.short else COMMITTED, **told)
    one = partial(everything, size=size, seed=given.seed)
    with ProcessPoolExecutor(len(parts), multiprocessing.get_context("spawn")) as pool:
        rows = [row for part in pool.map(one, *zip(*parts, strict=True)) for row in part]
    write(given.out, rows, size, given.seed)


if __name__ == "__main__":
    sys.exit(main())
