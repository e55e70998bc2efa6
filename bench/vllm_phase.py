"""Rounds of load on two vLLMs by turns, and what they come to: throughput, the slowest request, CPU on the engine's thread."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.row import Row, ratio
from tests.engines.vllm_server import VllmServer

_COST = re.compile(r"tap_cost steps=(\d+) tap_cpu_ns=(\d+) forward_cpu_ns=(\d+)")
_PROMPT = "Write two sentences about how bread is made, and one about who makes it. Number {}."


@dataclass(frozen=True, slots=True)
class Load:
    """What a round asks of a server: so many requests, of so many tokens each, by so many clients at once.

    More than a hundred steps: the tap tells every hundred what they cost.
    """

    clients: int = 8
    requests: int = 16
    tokens: int = 56


@dataclass(frozen=True, slots=True)
class Round:
    """Tokens a second, seconds of each request, and how many failed."""

    tokens_per_s: float
    took_s: tuple[float, ...]
    failed: int

    @property
    def slowest_s(self) -> float:
        return max(self.took_s)


class Spent(NamedTuple):
    """CPU nanoseconds on the engine's thread, of the tap and of the forward passes without it, in so many steps."""

    steps: int
    tap_ns: int
    forward_ns: int


@dataclass(slots=True)
class Phase:
    """Rounds of two servers by turns: one that is untapped, and the one that it is about."""

    name: str
    pair: str = "tapped / not"
    bare: list[Round] = field(default_factory=list)
    tapped: list[Round] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)  # of each tapped round in which the tap has told it

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Phase:
        """From what ``asdict`` made of one."""
        bare, tapped = (
            [Round(one["tokens_per_s"], tuple(one["took_s"]), one["failed"]) for one in told[side]]
            for side in ("bare", "tapped")
        )
        return cls(told["name"], told["pair"], bare, tapped, [Spent(*one) for one in told["spent"]])

    def rows(self) -> Iterator[Row]:
        over = [one.tokens_per_s for one in self.tapped], [one.tokens_per_s for one in self.bare]
        yield ratio(f"vLLM throughput, {self.pair}, {self.name}", *over, note=f"{len(self.tapped)} pairs")
        slow = [one.slowest_s for one in self.tapped], [one.slowest_s for one in self.bare]
        yield ratio(f"vLLM slowest of {len(self.tapped[0].took_s)} requests, {self.pair}, {self.name}", *slow)
        if self.spent:
            tap, forward = [one.tap_ns for one in self.spent], [one.forward_ns for one in self.spent]
            note = f"{sum(one.steps for one in self.spent)} steps in {len(self.spent)} rounds"
            yield ratio(f"vLLM engine-thread CPU, tap / forward, {self.name}", tap, forward, note).at_most(0.01)
        for whose, rounds in (("", self.tapped), (" by the server beside it", self.bare)):
            yield Row(f"vLLM requests failed{whose}, {self.name}", sum(one.failed for one in rounds)).at_most(0)


def measure(
    name: str,
    bare: VllmServer,
    tapped: VllmServer,
    rounds: int,
    load: Load = Load(),
    pair: str = "tapped / not",
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Phase:
    """So many pairs of rounds, after one that warms, every other one in the opposite order. around: each tapped round."""
    phase = Phase(name, pair)
    for number in range(rounds + 1):
        for server, line in ((bare, phase.bare), (tapped, phase.tapped))[:: 1 if number % 2 else -1]:
            before = cost(tapped)
            with around() if server is tapped else nullcontext():
                made = serve(server, number, load)
            if number:
                line.append(made)
            if number and server is tapped and (spent := _since(before, cost(tapped))).steps:
                phase.spent.append(spent)
    return phase


def serve(server: VllmServer, number: int, load: Load) -> Round:
    """A round: each request is another prompt, behind a beginning that all share and the prefix cache has."""

    def ask(place: int) -> tuple[float, int]:
        begun_s = time.perf_counter()
        try:
            done = server.complete(
                _PROMPT.format(number * load.requests + place), max_tokens=load.tokens, ignore_eos=True
            )
        except Exception:  # noqa: BLE001 - counted: none may fail
            return time.perf_counter() - begun_s, 0
        return time.perf_counter() - begun_s, len(done.tokens)

    begun_s = time.perf_counter()
    with ThreadPoolExecutor(load.clients) as pool:
        made = list(pool.map(ask, range(load.requests)))
    took_s = time.perf_counter() - begun_s
    return Round(sum(n for _, n in made) / took_s, tuple(s for s, _ in made), sum(not n for _, n in made))


def cost(server: VllmServer) -> Spent:
    """All so far, as the tap last told it."""
    told = [found for line in server.log if (found := _COST.search(line))]
    return Spent(*map(int, told[-1].groups())) if told else Spent(0, 0, 0)


def _since(before: Spent, now: Spent) -> Spent:
    return Spent(*(new - old for new, old in zip(now, before, strict=True)))
