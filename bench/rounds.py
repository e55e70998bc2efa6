"""Contenders take turns, round by round, so that a busy moment hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.peers import Peer, check_scored
from bench.serving import cpu_s
from bench.steps import Steps


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of every step, and the server's CPU seconds per step."""

    steps_s: tuple[float, ...]
    cpu_s: float

    @property
    def p50_s(self) -> float:
        return float(np.median(self.steps_s))

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.steps_s, 0.99))


@dataclass(frozen=True, slots=True)
class Contender:
    """A peer, what it sends, and the processes that serve it. checked: its answers are the sidecar's."""

    peer: Peer
    steps: Steps
    pids: tuple[int, ...]
    count: int  # steps a round
    checked: bool = True

    def round(self) -> Round:
        sent = [self.peer.ready(message) for message in self.steps.take(self.count)]
        replies, times = [], []
        before_s = cpu_s(*self.pids)
        for one in sent:
            start_s = time.perf_counter()
            replies.append(self.peer.step(one))
            times.append(time.perf_counter() - start_s)
        spent_s = (cpu_s(*self.pids) - before_s) / len(sent)
        for reply in replies if self.checked else ():
            check_scored(reply)
        return Round(tuple(times), spent_s)


def alternate(contenders: Mapping[str, Callable[[], Round]], rounds: int) -> dict[str, list[Round]]:
    """``rounds`` of each after one that warms; every other time in the opposite order."""
    names = list(contenders)
    made: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            taken = contenders[name]()
            if number:
                made[name].append(taken)
    return made


def p50s(rounds: Sequence[Round]) -> list[float]:
    return [one.p50_s for one in rounds]


def p99s(rounds: Sequence[Round]) -> list[float]:
    return [one.p99_s for one in rounds]


def cpus(rounds: Sequence[Round]) -> list[float]:
    return [one.cpu_s for one in rounds]
