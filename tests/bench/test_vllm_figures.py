"""What bench.vllm makes of a server's answers and of what its tap tells in the log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.disturbed import killed
from bench.serving import Served
from bench.vllm import PHASES, earlier, results
from bench.vllm_phase import Load, Spent, cost, measure
from tests.engines.vllm_server import Completion

LOAD = Load(clients=2, requests=4, tokens=3)


@dataclass
class Server:
    """Answers at once; its tap tells what every fourth request cost: 7 us beside 1,000 us, and one step more each time."""

    tapped: bool
    log: list[str] = field(default_factory=list)
    asked: int = 0
    fails: bool = False  # half of what it is asked

    def complete(self, prompt: str, *, max_tokens: int, ignore_eos: bool) -> Completion:
        assert ignore_eos
        self.asked += 1
        if self.fails and prompt[-2] in "13579":
            raise ConnectionError(prompt)
        if self.tapped and self.asked % 4 == 0:
            rounds = self.asked // 4
            self.log.append(f"tap_cost steps={rounds} tap_cpu_ns={rounds * 7_000} forward_cpu_ns={rounds * 1_000_000}")
        return Completion("cmpl", [1], [0] * max_tokens, "", "length")


def rows_of(bare: Any, tapped: Any, **settings: Any) -> dict[str, Any]:
    return {row.name: row for row in measure("here", bare, tapped, 3, LOAD, **settings).rows()}


def test_the_share_of_cpu_is_a_ratio_of_each_round_without_the_one_that_warms():
    bare, tapped = Server(tapped=False), Server(tapped=True)
    phase = measure("here", bare, tapped, 3, LOAD)
    assert phase.spent == [Spent(1, 7_000, 1_000_000)] * 3
    assert cost(tapped) == Spent(4, 28_000, 4_000_000)
    share = {row.name: row for row in phase.rows()}["vLLM engine-thread CPU, tap / forward, here"]
    assert (share.value, share.interval, share.met) == (0.007, (0.007, 0.007), True)
    assert share.note == "3 steps in 3 rounds"
    assert (len(phase.bare), len(phase.tapped), bare.asked, tapped.asked) == (3, 3, 16, 16)


def test_two_untapped_servers_have_a_throughput_and_no_share():
    rows = rows_of(Server(tapped=False), Server(tapped=False), pair="untapped / untapped")
    assert rows.keys() == {
        "vLLM throughput, untapped / untapped, here",
        "vLLM slowest of 4 requests, untapped / untapped, here",
        "vLLM requests failed, here",
        "vLLM requests failed by the server beside it, here",
    }


@pytest.mark.parametrize("fails", [(False, False), (False, True), (True, False)])
def test_requests_that_failed_are_counted_on_both_sides(fails: tuple[bool, bool]):
    rows = rows_of(*(Server(tapped=one, fails=fail) for one, fail in zip((False, True), fails, strict=True)))
    bare, tapped = (rows[f"vLLM requests failed{whose}, here"].value for whose in (" by the server beside it", ""))
    assert (bare, tapped) == (6 * fails[0], 6 * fails[1])


def test_what_goes_on_around_the_tapped_rounds_goes_on_around_no_other():
    bare, tapped, seen = Server(tapped=False), Server(tapped=True), []

    @contextmanager
    def around() -> Iterator[None]:
        before = bare.asked, tapped.asked
        yield
        seen.append((bare.asked - before[0], tapped.asked - before[1]))

    measure("here", bare, tapped, 3, LOAD, around=around)
    assert seen == [(0, 4)] * 4


@contextmanager
def sidecar() -> Iterator[tuple[Served, list[subprocess.Popen[bytes]]]]:
    """Two processes that wait for ever."""
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    both = [subprocess.Popen(command) for _ in range(2)]
    try:
        yield Served("", both[0].pid, both[1].pid, 0), both
    finally:
        for one in both:
            one.kill()
            one.wait()


def test_a_sidecar_is_killed_in_the_middle_of_what_runs_beside_it():
    with sidecar() as (served, both), killed(served, 0.01):
        assert [one.wait(20.0) for one in both] == [-9, -9]


def test_a_sidecar_that_outlives_what_runs_beside_it_was_not_disturbed():
    late = pytest.raises(RuntimeError, match="over within 60 s, before")
    with sidecar() as (served, both), late, killed(served, 60.0):
        assert [one.poll() for one in both] == [None, None]


def test_phases_that_are_measured_again_take_the_place_of_the_earlier_ones_and_the_others_stay(tmp_path: Path):
    names = [PHASES["killed"], PHASES["noise"], PHASES["every"]]
    phases = {name: measure(name, Server(tapped=False), Server(tapped=True), 3, LOAD) for name in names}
    first, second = {"measured": "2026-01-01"}, {"measured": "2026-02-02"}
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(results(first, {name: (first, phase) for name, phase in phases.items()})))
    again = measure(PHASES["killed"], Server(tapped=False), Server(tapped=True, fails=True), 3, LOAD)
    found = results(second, {**earlier(path), again.name: (second, again)})
    assert list(found["rounds"]) == [PHASES[key] for key in ("noise", "every", "killed")]
    assert found["rounds"][PHASES["every"]] == asdict(phases[PHASES["every"]])
    assert found["machines"] == {PHASES["noise"]: first, PHASES["every"]: first}
    failed = {row["name"]: row["value"] for row in found["rows"] if "failed, " in row["name"]}
    assert failed == {
        f"vLLM requests failed, {PHASES[key]}": n for key, n in (("noise", 0), ("every", 0), ("killed", 6))
    }


def test_the_committed_rounds_are_read_as_phases_of_today():
    path = Path(__file__).parents[2] / "bench" / "vllm.json"
    found = earlier(path)
    assert set(found) <= set(PHASES.values())
    for _, phase in found.values():
        assert {row.name: row.value for row in phase.rows() if "throughput" in row.name}.items() <= {
            row["name"]: row["value"] for row in json.loads(path.read_text())["rows"]
        }.items()
