"""``probes report``: one page to decide from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    report = commands.add_parser("report", help="write one page to decide from, and the same as JSON")
    report.add_argument("draft", type=Path, metavar="DRAFT", help="a probe in the making")
    report.add_argument("--into", type=Path, metavar="FOLDER", help="where to write; the draft if not given")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.reporting.report import HTML, write_report

    decision = write_report(arguments.draft, arguments.into)
    shown = Console(highlight=False)
    shown.print(decision.headline, style="bold", markup=False)
    for reason in decision.reasons:
        shown.print(f"- {reason}", markup=False)
    shown.print(str((arguments.into or arguments.draft) / HTML), markup=False)
    return 0
