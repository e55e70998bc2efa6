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
_COLUMNS = ("right", "floors", "canaries after", "stream after")
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


def joined(paths: Sequence[Path]) -> dict[str, Any]:
    """Results of several files as if they were of one run. Raises ValueError if table, seed or size differ."""
    parts = [read(path) for path in paths]
    heads = [{name: value for name, value in one.items() if name != "rows"} for one in parts]
    if any(head != heads[0] for head in heads) or heads[0]["expected"] != expected_digest():
        raise ValueError("results of several tables, seeds or sizes, or of a table that is not the present one")
    return heads[0] | {"rows": [row for one in parts for row in one["rows"]]}


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
    head = ["condition", "expected", *(f"{name}: {what}" for name in subjects for what in _COLUMNS)]
    lines = [_line(head), _line(["---"] * len(head))]
    for numerics, conditions in wanted[subjects[0]].items():
        for name in conditions:
            of = [row for subject in subjects for row in _of(rows, subject, numerics, name)]
            cells = [cell for row in of for cell in _cells(row)]
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


def _cells(row: Row) -> tuple[str, ...]:
    """Of its runs: how many were right, the farthest that canaries moved, and when they and the stream by itself told it."""
    runs = row["runs"]
    right = f"{row['right']} of {len(runs)}"
    floors = [one["farthest"] for one in runs]
    return (
        right if row["right"] >= RIGHT * len(runs) else f"**{right}**",
        f"{min(floors):,.1f} to {max(floors):,.1f}",
        *(_after([one[name] for one in runs]) for name in ("moved_after", "first_alarm")),
    )


def _after(ticks: Sequence[int | None]) -> str:
    """The median of the runs in which it came, and the most; in how many, if not in all."""
    came = sorted(one for one in ticks if one is not None)
    if not came:
        return "-"
    told = f"{came[len(came) // 2]} (at most {came[-1]})"
    return told if len(came) == len(ticks) else f"{told}, in {len(came)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
