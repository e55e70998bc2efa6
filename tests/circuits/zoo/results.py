"""What was found, as it is committed, and the table that people read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.circuits.zoo.zoo import RIGHT, Expected, Size, expected, expected_digest

_REPO = Path(__file__).parents[3]
RESULTS = Path(__file__).with_name("results.json")
DOCS = _REPO / "docs" / "circuits.md"
_BEGIN, _END = "<!-- zoo -->\n", "<!-- /zoo -->\n"
Row = Mapping[str, Any]


def write(path: Path, rows: Sequence[Row], size: Size, seed: int) -> None:
    """A run on a line: a diff shows which came out otherwise."""
    head = {"expected": expected_digest(), "seed": seed, "size": asdict(size)}
    lines = [json.dumps(head)[1:-1]]
    parts = []
    for row in rows:
        runs = ",\n   ".join(json.dumps(one) for one in row["runs"])
        about = json.dumps({name: value for name, value in row.items() if name != "runs"})
        parts.append(f'  {about[:-1]}, "runs": [\n   {runs}\n  ]}}')
    body = ",\n".join(parts)
    path.write_text(f'{{\n {lines[0]},\n "rows": [\n{body}\n ]\n}}\n', encoding="utf-8")


def read(path: Path = RESULTS) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def table(found: Mapping[str, Any]) -> str:
    """Markdown: how it was run, and a line for each condition and its numerics, the subjects side by side."""
    rows: Sequence[Row] = found["rows"]
    size = Size(**found["size"])
    told = (
        f"{size.runs} runs of {size.ticks} ticks for each condition, the change at tick {size.change}; "
        f"{size.histories} weeks of history; {size.texts} texts of each kind; seed {found['seed']}.\n"
    )
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    wanted = {subject: expected(subject) for subject in subjects}
    head = ["condition", "expected", *(f"{name}: right, ticks to it, floors" for name in subjects)]
    lines = [_line(head), _line(["---"] * len(head))]
    for numerics, conditions in wanted[subjects[0]].items():
        for name in conditions:
            cells = [_cell(row) for subject in subjects for row in _of(rows, subject, numerics, name)]
            what = name.replace("_", " ") + ("" if numerics == "float32" else f", {numerics}")
            lines.append(_line([what, _expectation({one: wanted[one][numerics][name] for one in subjects}), *cells]))
    return "\n".join([told, *lines]) + "\n"


def put_table(path: Path, found: Mapping[str, Any]) -> None:
    """Between its two marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}{table(found)}{_END}{after}", encoding="utf-8")


def table_in(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


def _of(rows: Sequence[Row], subject: str, numerics: str, name: str) -> list[Row]:
    return [one for one in rows if (one["subject"], one["numerics"], one["condition"]) == (subject, numerics, name)]


def _expectation(of: Mapping[str, Expected]) -> str:
    """Of all subjects alike, or of each."""
    words = {subject: _words(one) for subject, one in of.items()}
    alike = len(set(words.values())) == 1
    return next(iter(words.values())) if alike else "; ".join(f"{one}: {told}" for one, told in words.items())


def _words(one: Expected) -> str:
    alerts = " or ".join(one.any_of) if one.any_of else ", ".join(one.alerts)
    return f"{one.diagnosis} ({alerts or 'no alert'})".replace("Circuit", "")


def _cell(row: Row) -> str:
    runs = row["runs"]
    seen = sorted(t for t in (_seen_after(one) for one in runs) if t is not None)
    floors = sorted(one["farthest"] for one in runs)[len(runs) // 2]
    ticks = f"{seen[len(seen) // 2]} (at most {seen[-1]})" if seen else "-"
    right = f"{row['right']} of {len(runs)}"
    return f"{right if row['right'] >= RIGHT * len(runs) else f'**{right}**'}, {ticks}, {floors:,.1f}"


def _seen_after(one: Mapping[str, Any]) -> int | None:
    times = [one[name] for name in ("first_alarm", "moved_after") if one[name] is not None]
    return min(times, default=None)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
