"""What bench.vllm makes of a server's answers and of what its tap tells in the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from bench.vllm import Load, Spent, cost, measure
from tests.engines.vllm_server import Completion

LOAD = Load(clients=2, requests=4, tokens=3)


@dataclass
class Server:
    """Answers at once; its tap tells what every fourth request cost: 7 us beside 1,000 us, and one step more each time."""

    tapped: bool
    log: list[str] = field(default_factory=list)
    asked: int = 0
    fails: bool = False

    def complete(self, prompt: str, *, max_tokens: int, ignore_eos: bool) -> Completion:
        assert ignore_eos
        self.asked += 1
        if self.fails:
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
        "vLLM p99 of a request, untapped / untapped, here",
        "vLLM requests failed, here",
    }


@pytest.mark.parametrize("fails", [False, True])
def test_requests_that_failed_are_counted(fails: bool):
    failed = measure("here", Server(tapped=False), Server(tapped=True, fails=fails), 2, LOAD).tapped
    assert [one.failed for one in failed] == [4 * fails] * 2
