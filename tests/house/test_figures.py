"""The README's figures are those of the committed benchmark, digit by digit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def told(row: dict[str, Any]) -> str:
    """A result as the README gives it: three digits, the interval, and whether its goal was met."""
    words = f"{row['value']:.3g}"
    if row.get("interval"):
        words += " [{:.3g}, {:.3g}]".format(*row["interval"])
    if row.get("goal"):
        words += f" (goal {row['goal']}: {'met' if row['met'] else 'missed'})"
    return words


def test_every_figure_of_the_readmes_table_is_in_the_results_and_says_whether_its_goal_was_met():
    rows = {row["name"]: row for row in json.loads((ROOT / "bench" / "results.json").read_text())}
    text = (ROOT / "README.md").read_text()
    table = re.search(r"^\| figure \|.*?\n\n", text, flags=re.DOTALL | re.MULTILINE)
    assert table is not None
    shown = [line.strip("| \n").split(" | ") for line in table[0].strip().splitlines()[2:]]
    assert len(shown) > 5
    assert dict(shown) == {name: told(rows[name]) for name, _ in shown}


def rows_of(name: str) -> list[dict[str, Any]]:
    """Of one committed file of ``bench``."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "bench" / name).read_text())["rows"]
    return rows


def test_every_interval_on_vllms_page_is_one_of_the_committed_benchmarks():
    page = (ROOT / "docs" / "engines" / "vllm.md").read_text()
    shown = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", page)
    assert len(shown) > 25
    rows = [row for name in ("vllm.json", "vllm_gpu.json", "interpreter.json") for row in rows_of(name)]
    measured = [(row["value"], *row["interval"]) for row in rows if row["interval"]]
    for cell in shown:
        digits = len(cell[0].partition(".")[2])
        assert cell in {tuple(f"{value:.{digits}f}" for value in one) for one in measured}, cell


def test_the_taps_share_of_vllms_thread_is_told_phase_by_phase():
    page = (ROOT / "docs" / "engines" / "vllm.md").read_text()
    shown = re.findall(r"\] \| ([\d.]+ %) \|", page)
    shares = [f"{100 * row['value']:.1f} %" for row in rows_of("vllm.json") if "engine-thread CPU" in row["name"]]
    assert shown == shares
