"""``probes evaluate``: how good a draft is on test rows, beside all that could make it look good."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars

if TYPE_CHECKING:
    from rich.table import Table

    from probes.stages import Evaluated


def add(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a calibrated draft on its test rows, beside baselines and controls, and try its gates",
        description="Compares the probe with text baselines, shuffled labels, random directions, earlier states and texts of like "
        "length or without the most telling words. A gate that fails is a result, not an error: the exit status is 0.",
    )
    evaluate.add_argument("draft", type=Path, metavar="DRAFT", help="a folder after `probes calibrate`")
    evaluate.add_argument(
        "--requests-per-day",
        type=float,
        default=10_000.0,
        metavar="N",
        help="of your traffic, for alerts a day (default 10,000)",
    )
    evaluate.add_argument(
        "--prior",
        type=float,
        metavar="P",
        help="share of positives in it (default: that of the calibration, or else 0.01)",
    )
    evaluate.add_argument(
        "--seed", type=int, default=0, help="of resamples, shuffles and random directions (default 0)"
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.commands.calibrate import store_of
    from probes.draft import Draft
    from probes.quality.evaluation import STEPS, evaluate

    draft = Draft(arguments.draft)
    with bars() as shown:
        task = shown.add_task("scoring test rows", total=1 + len(STEPS))
        found = evaluate(
            draft,
            store_of(draft),
            requests_per_day=arguments.requests_per_day,
            prior=arguments.prior,
            seed=arguments.seed,
            step=lambda what: shown.update(task, advance=1, description=what),
        )
        shown.update(task, advance=1, description="done")
    draft.write(found)
    console = Console(highlight=False)
    console.print(_quality(found))
    console.print(_gates(found))
    console.print(f"{_told(found)} Next: probes validate {arguments.draft} --model FOLDER", soft_wrap=True)
    return 0


def _quality(found: Evaluated) -> Table:
    from rich.table import Table
    from rich.text import Text

    low, high = found.auroc_interval
    table = Table("what", "value", title=f"On {found.rows} test texts, {found.positives} of them positive")
    table.add_row("AUROC", f"{found.auroc:.3f} [{low:.3f}, {high:.3f}]")
    table.add_row("partial AUROC, FPR 0.1 % to 10 %", f"{found.partial_auroc:.3f}")
    for point in found.operating_points:
        below, above = point.tpr_interval
        doubt = "" if point.held else " (too few negatives to speak of that rate)"
        table.add_row(f"recall at {point.fpr:.1%} FPR", f"{point.tpr:.1%} [{below:.1%}, {above:.1%}]{doubt}")
    table.add_row("at its threshold", f"recall {found.fires.tpr:.1%}, FPR {found.fires.fpr:.1%}")
    table.add_row("calibration error, Brier", f"{found.ece:.3f}, {found.brier:.3f}")
    for rival in found.rivals:
        table.add_row(rival.name, f"{rival.auroc:.3f}")
    table.add_row("shuffled labels", f"{found.shuffled_auroc:.3f}")
    table.add_row("best random direction", f"{found.random_best_auroc:.3f}")
    for name, value in (
        ("earliest states", found.first_layer_auroc),
        ("texts of like length", found.length_matched_auroc),
        ("texts without telling words", found.leak_ablated_auroc),
    ):
        table.add_row(name, "not measured" if value is None else f"{value:.3f}")
    for name, rows, value in (*found.left_out, *found.outside):
        table.add_row(Text(f"{name} ({rows} texts, unseen set)"), f"{value:.3f}")
    return table


def _gates(found: Evaluated) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("gate", "", "why", show_lines=True)
    for gate in sorted(found.gates, key=lambda gate: gate.passed):
        verdict = Text("passed", "green") if gate.passed else Text("FAILED", "bold red")
        table.add_row(gate.name.replace("_", " "), verdict, Text(gate.text))
    return table


def _told(found: Evaluated) -> str:
    failed = sum(not gate.passed for gate in found.gates)
    verdict = "Every gate passed." if not failed else f"{failed} of {len(found.gates)} gates failed."
    return (
        f"{verdict} {found.alerts_per_day:,.0f} alerts a day are to be expected of {found.requests_per_day:,.0f} requests, "
        f"{found.prior:.1%} of them positive ({found.seconds:.0f} s)."
    )
