"""What a full run showed: rows for tests/faults/results.json, and the table of docs/faults.md made from them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
RESULTS, PAGE = ROOT / "tests" / "faults" / "results.json", ROOT / "docs" / "faults.md"
_HEAD = """# Faults against real processes

Made by `make test-faults FULL=1` from one run; `make test-faults` checks shorter forms of the same. In every row all
identities held; a goal about time or throughput that was not reached is marked as missed. Real are `sidecar serve` with its worker
process, the engines (processes of their own) and the signals that end or freeze them. Every batch id that a tap sent ends in
exactly one of scored, dropped, refused and unanswered; the sidecar's counts are the sizes of these sets; and
`received = scored + dropped + rejected + in_flight` held at every scrape.
Times are those of the machine named below, and of what else it did then.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, under one load."""

    fault: str
    load: str
    seconds: float
    outcome: str
    numbers: dict[str, float] = field(default_factory=dict)
    missed: tuple[str, ...] = ()  # goals about time that this machine did not reach in this run


def write(rows: list[Row]) -> None:
    ordered = sorted(rows, key=lambda row: (row.fault, row.load))
    told = {"machine": machine(), "rows": [asdict(row) for row in ordered]}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    PAGE.write_text(page(ordered))


def machine() -> str:
    words = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    names = [value.strip() for name, _, value in words if name.strip() == "model name"] or [platform.machine()]
    return f"{os.cpu_count()} x {names[0]}, Linux {platform.release()}, Python {platform.python_version()}"


def page(rows: list[Row]) -> str:
    lines = [
        _HEAD,
        f"Machine: {machine()}.",
        "",
        "| fault | load | seconds | outcome | numbers |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.numbers.items())
        outcome = row.outcome + "".join(f"; **missed: {goal}**" for goal in row.missed)
        lines.append(f"| {row.fault} | {row.load} | {row.seconds:.0f} | {outcome} | {numbers} |")
    return "\n".join(lines) + "\n"
