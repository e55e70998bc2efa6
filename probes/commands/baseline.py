"""``probes baseline fit``: what is sound traffic for a circuit, learned from archived sketches and frozen."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.unsound import add_skip, passed_over

if TYPE_CHECKING:
    from rich.table import Table

    from probes.circuits.baseline import Baseline

_DAY_S = 86_400
_AT_LEAST = 0.05


def add(commands: Any) -> None:
    baseline = commands.add_parser("baseline", help="what is sound traffic for a circuit, learned and frozen")
    fit = baseline.add_subparsers(required=True, metavar="WHAT").add_parser(
        "fit",
        help="fit the reference that alarms are raised against",
        description="From archived sketches: how engaged a circuit is in each hour of the week, how well that is known, and the "
        "smallest tolerance under which a replay, each day against the others, raises no alarm. Sign it with `probes sign`.",
    )
    fit.add_argument(
        "archives", nargs="+", type=Path, metavar="ARCHIVE", help="Parquet files that sidecars wrote, or folders"
    )
    fit.add_argument("--out", type=Path, required=True, metavar="BASELINE", help="the folder to write")
    fit.add_argument(
        "--at-least",
        type=float,
        default=_AT_LEAST,
        metavar="SHARE",
        help=f"no smaller tolerance (default {_AT_LEAST:g})",
    )
    fit.add_argument(
        "--run-length", type=int, metavar="TICKS", help="at least so many to a false alarm of a circuit (default 43200)"
    )
    fit.add_argument(
        "--one-bucket", action="store_true", help="one reference for all hours: to try it out; it never pages"
    )
    add_skip(fit)
    fit.set_defaults(run=_fit)


def _fit(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.circuits.baseline import load_baseline
    from probes.circuits.baseline_fit import Options, fit_baseline
    from sidecar.circuits.detector import RUN_LENGTH
    from sidecar.circuits.reference import WEEK

    options = Options(
        1 if arguments.one_bucket else WEEK,
        arguments.at_least,
        arguments.run_length or RUN_LENGTH,
        skip_unsound=arguments.skip_unsound,
    )
    console = Console(highlight=False)

    def told(unsound: Sequence[str]) -> None:
        for line in passed_over(unsound):
            console.print(line, soft_wrap=True, markup=False)

    fit_baseline(arguments.archives, arguments.out, options, told)
    made = load_baseline(arguments.out, root=arguments.out)
    console.print(_table(made))
    console.print(_told(made), soft_wrap=True)
    return 0


def _table(made: Baseline) -> Table:
    import numpy as np
    from rich.table import Table

    from sidecar.circuits.detector import sessions_to_see_nothing
    from sidecar.circuits.reference import Band

    table = Table(
        "circuit",
        "slice",
        "sessions",
        "engaged share",
        "tolerance",
        "ablation seen after",
        "in hours",
        "silence told in",
    )
    sessions = [count for one in made.manifest.circuits for count in one.sessions]
    for one, many in zip(made.watched, sessions, strict=True):
        mean, tolerance = one.reference.mean, one.reference.tolerance
        low = max(0.0, float(np.median(mean - one.reference.half_width)) - tolerance)
        after = sessions_to_see_nothing(Band(low, 1.0), made.manifest.run_length, one.slices)
        table.add_row(
            one.circuit,
            one.slice,
            f"{many:,}",
            f"{mean.min():.1%} to {mean.max():.1%}",
            f"{tolerance:g}",
            f"{after:.0f} sessions" if math.isfinite(after) else "never",
            f"{one.reference.sees_less:.0%}",
            f"{one.reference.tells_silence:.0%}",
        )
    return table


def _told(made: Baseline) -> str:
    from probes.circuits.baseline_fit import COVERED
    from sidecar.circuits.reference import WEEK

    about = made.manifest
    days = (about.last_tick - about.first_tick + 1) * about.tick_s / _DAY_S
    if about.buckets == 1:
        return (
            f"learning: one bucket, fitted on {days * 24:.1f} hours, knows no hour of the week. It pages nobody; traffic that "
            "follows the hour will alarm."
        )
    if about.state == "learning":
        less = "are less than a week" if days < 7 else f"of sessions in fewer than {COVERED} of the week's {WEEK} hours"
        return f"learning: {days:.1f} days {less}. It is shown, and pages nobody."
    return f"frozen: {days:.1f} days, no alarm when each was replayed against the others. Next: probes sign"
