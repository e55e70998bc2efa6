"""What circuits hold in memory is what docs/sizing.md says, each of their bounds reached."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from bench.circuit_memory import held_mb, live_bytes
from bench.monitored import shipped

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sizing.md"


def stated() -> dict[str, float]:
    """MB by what it is."""
    _, table, _ = re.split(r"<!-- /?memory -->", PAGE.read_text(encoding="utf-8"))
    return {what: float(mb) for what, mb in re.findall(r"^\| (.+?) \| ([\d.]+) \|$", table, re.MULTILINE)}


def test_the_page_says_what_the_bench_found_rounded_up():
    rows = {row["name"]: row["value"] for row in json.loads((ROOT / "bench" / "circuits.json").read_text())["costs"]}
    assert stated() == {what: math.ceil(rows[f"MB held by {what}"]) for what in stated()}


@pytest.mark.timeout(400)
def test_at_32_circuits_in_8_slices_each_part_holds_what_is_stated_no_more_and_not_much_less():
    """By what Python and numpy have really allocated, after more than an hour of ticks in which everything had news."""
    held, told = held_mb(shipped(), history=64), stated()
    assert held.keys() == told.keys()
    assert {what: mb for what, mb in held.items() if not mb <= told[what] <= 1.5 * mb + 0.2} == {}


def test_sketch_and_detector_of_a_circuit_in_a_slice_take_less_than_two_kilobytes_at_the_most_nodes_there_may_be():
    rows = list(live_bytes())
    assert len(rows) == 3
    assert all(row.met for row in rows)
