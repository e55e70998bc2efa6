"""What each shipped probe is worth, as its own report says it: the table of ``docs/zoo.md`` and of ``probes zoo list``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import LabError

if TYPE_CHECKING:
    from rich.table import Table

REPORT = "report.json"
# The table stands between these two lines of the page.
BEGIN, END = "<!-- the zoo's table: `probes zoo list --markdown` -->", "<!-- end of the zoo's table -->"
_HEAD = (
    "probe",
    "reads, against",
    "where, how",
    "AUROC",
    "best text baseline",
    "gain",
    "recall at its threshold",
    "evidence",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One probe's report. against: what gates that failed say, and whatever else keeps it from being paged on."""

    name: str
    cells: tuple[str, ...]
    against: tuple[str, ...]


def read_row(folder: Path) -> Row:
    """Read the report in an artifact's folder. Raises LabError naming it if it is missing or not as this version writes it."""
    path = folder / REPORT
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Row(told["training"]["name"], _cells(told), _against(told))
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} is not a report of this version: {error!r}") from None


def read_rows(zoo: Path, names: Iterable[str]) -> tuple[Row, ...]:
    """The rows of those that were built, in the order of their names."""
    return tuple(read_row(zoo / name) for name in sorted(names) if (zoo / name / REPORT).is_file())


def markdown(rows: Iterable[Row]) -> str:
    """The table, and below it what stands against each probe, in the report's own words."""
    held = list(rows)
    lines = [f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [f"| `{row.name}` | {' | '.join(row.cells)} |" for row in held]
    for row in held:
        lines += ["", f"**`{row.name}`**{_stands(row)}"]
    return "\n".join(lines) + "\n\n"


def _stands(row: Row) -> str:
    if not row.against:
        return ": nothing stands against it."
    return "\n\n" + "\n".join(f"- {text}" for text in row.against)


def table(rows: Mapping[str, Row], recipes: Iterable[str]) -> Table:
    """The same for a terminal, a cell a line; a recipe that was not built says so."""
    from rich.table import Table
    from rich.text import Text

    found = Table("probe", "what it is worth", "verdict", show_lines=True)
    for name in recipes:
        cells = rows[name].cells if name in rows else ("not built",)
        told = [f"{head}: {cell}" for head, cell in zip(_HEAD[1:-2], cells[:-2], strict=False)]
        found.add_row(Text(name, "bold"), Text("\n".join(told)), Text("\n".join(cells[-2:])))
    return found


def _cells(told: Mapping[str, Any]) -> tuple[str, ...]:
    made, found = told["training"], told["evaluation"]
    best = max(found["rivals"], key=lambda rival: rival["auroc"])
    aggregation = made["aggregation"]["kind"].replace("_", " ")
    return (
        f"{made['positive_label']}, {made['negative_label']}",
        f"{made['tap_point']}, {made['kind'].replace('_', ' ')}, {aggregation}",
        f"{found['auroc']:.3f} {_interval(found['auroc_interval'])}",
        f"{best['auroc']:.3f} ({best['name'].replace('_', ' ')})",
        f"{best['gain']:+.3f} {_interval(best['gain_interval'], '+.3f')}",
        _fires(found["fires"], told["calibration"]["thresholds"]),
        told["evidence"],
        ("failed: " if _failed(told) else "") + told["decision"]["headline"],
    )


def _fires(point: Mapping[str, Any], thresholds: list[Mapping[str, Any]]) -> str:
    target = thresholds[0]["target_fpr"]
    promise = "certified" if all(one["certified"] for one in thresholds) else "not certified"
    return f"{point['tpr']:.0%}; {point['fpr']:.1%} of benign texts ({target:.0%} {promise})"


def _against(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Gates that failed, of the evaluation and of the validation; doubts that no gate tells come last."""
    failed = [gate["text"] for gate in told["gates"] if not gate["passed"]]
    others = [text for text in told["not_done"] if text not in failed]
    return (*failed, *others)


def _failed(told: Mapping[str, Any]) -> bool:
    """Whether a gate of the evaluation failed: the artifact is then one that was packed as failed."""
    return any(not gate["passed"] for gate in told["evaluation"]["gates"])


def _interval(pair: list[float], form: str = ".3f") -> str:
    return f"[{pair[0]:{form}}, {pair[1]:{form}}]"
