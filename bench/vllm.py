"""What the tap costs a real vLLM: two servers, one of them tapped, take turns under the same load.

Throughput and the slowest requests are ratios, round by round; and so is the tap's CPU time on the engine's own thread, to that
of the forward pass that it rides on, since noise hides one per cent of throughput. What is noise is measured first, by two
servers that are not tapped; at last the sidecar is slowed, frozen and killed under load. ``python -m bench.vllm [--short]``;
results with every round in bench/vllm.json, half an hour.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.machine import describe
from bench.row import Row, ratio
from bench.serving import Served, serving
from probes.recipe import ZOO
from probes.smollm2 import cache_folder, prepared_model
from tests.engines.environment import VLLM
from tests.engines.vllm_server import VllmServer

RESULTS = Path(__file__).parent / "vllm.json"
_COST = re.compile(r"tap_cost steps=(\d+) tap_cpu_ns=(\d+) forward_cpu_ns=(\d+)")
_CONNECTED_S = 30.0
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
    def p99_s(self) -> float:
        return float(np.quantile(self.took_s, 0.99))


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

    def rows(self) -> Iterator[Row]:
        over = [one.tokens_per_s for one in self.tapped], [one.tokens_per_s for one in self.bare]
        yield ratio(f"vLLM throughput, {self.pair}, {self.name}", *over, note=f"{len(self.tapped)} pairs")
        slow = [one.p99_s for one in self.tapped], [one.p99_s for one in self.bare]
        yield ratio(f"vLLM p99 of a request, {self.pair}, {self.name}", *slow)
        if self.spent:
            tap, forward = [one.tap_ns for one in self.spent], [one.forward_ns for one in self.spent]
            note = f"{sum(one.steps for one in self.spent)} steps in {len(self.spent)} rounds"
            yield ratio(f"vLLM engine-thread CPU, tap / forward, {self.name}", tap, forward, note).at_most(0.01)
        yield Row(f"vLLM requests failed, {self.name}", sum(one.failed for one in self.tapped)).at_most(0)


def serve(server: VllmServer, number: int, load: Load) -> Round:
    """A round: each request is another prompt, so that no prefix is cached for long."""

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


def measure(
    name: str, bare: VllmServer, tapped: VllmServer, rounds: int, load: Load = Load(), pair: str = "tapped / not"
) -> Phase:
    """So many pairs of rounds, after one that warms, every other one in the opposite order."""
    phase = Phase(name, pair)
    for number in range(rounds + 1):
        for server, line in ((bare, phase.bare), (tapped, phase.tapped))[:: 1 if number % 2 else -1]:
            before = cost(tapped)
            made = serve(server, number, load)
            if number:
                line.append(made)
            if number and server is tapped and (spent := _since(before, cost(tapped))).steps:
                phase.spent.append(spent)
    return phase


def _since(before: Spent, now: Spent) -> Spent:
    return Spent(*(new - old for new, old in zip(now, before, strict=True)))


def connected(server: VllmServer, times: int) -> None:
    """Wait until the tap has connected so many times."""
    ends_s = time.monotonic() + _CONNECTED_S
    while sum(" connected why=" in line for line in server.log) < times:
        if time.monotonic() > ends_s:
            raise RuntimeError("the tap did not connect")
        time.sleep(0.1)


@contextmanager
def slowed(served: Served) -> Iterator[None]:
    """Half of the time it stands still, in pieces of 50 ms."""
    over = threading.Event()
    processes = [psutil.Process(pid) for pid in (served.worker_pid, served.control_pid)]

    def hold() -> None:
        while not over.wait(0.05):
            for one in processes:
                one.suspend()
            over.wait(0.05)
            for one in processes:
                one.resume()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def frozen(served: Served) -> Iterator[None]:
    processes = [psutil.Process(pid) for pid in (served.worker_pid, served.control_pid)]
    for one in processes:
        one.suspend()
    try:
        yield
    finally:
        for one in processes:
            one.resume()


def run(rounds: int) -> Iterator[Phase]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stv-", dir="/tmp")))
        environment = stack.enter_context(VLLM.environment(cache_folder()))
        model, address = prepared_model(progress=False), f"unix:{home}/s"
        folders = [home / name for name in ("bare", "again", "tapped")]
        for folder in folders:
            folder.mkdir()
        home.chmod(0o700)
        env = {"STETHOSCOPE_TAP": "8,14", "STETHOSCOPE_ADDRESS": address, "STETHOSCOPE_TAP_COST": "1"}
        bare = stack.enter_context(VllmServer(environment, model, folders[0], eager=False))
        with VllmServer(environment, model, folders[1], eager=False) as again:
            yield measure("what is noise", bare, again, rounds, pair="untapped / untapped")
        tapped = stack.enter_context(VllmServer(environment, model, folders[2], eager=False, env=env))
        yield from _phases(bare, tapped, address, rounds)


def _phases(bare: VllmServer, tapped: VllmServer, address: str, rounds: int) -> Iterator[Phase]:
    def phase(name: str, around: Callable[[Served], Any] | None, times: int, *settings: str) -> Phase:
        with serving(ZOO, *settings, address=address) as served:
            connected(tapped, times)
            if around is None:
                return measure(name, bare, tapped, rounds)
            with around(served):
                return measure(name, bare, tapped, rounds)

    yield measure("attached, no sidecar", bare, tapped, rounds)
    yield phase("default sampling, 10 % of requests", None, 1)
    yield phase("every request", None, 2, "sampling.request_fraction=1.0")
    yield phase("sidecar slowed", slowed, 3, "sampling.request_fraction=1.0")
    yield phase("sidecar frozen", frozen, 4, "sampling.request_fraction=1.0")
    with serving(ZOO, "sampling.request_fraction=1.0", address=address) as served:
        connected(tapped, 5)
        for pid in (served.worker_pid, served.control_pid):
            psutil.Process(pid).send_signal(signal.SIGKILL)
        yield measure("sidecar killed", bare, tapped, rounds)


def main() -> int:
    """0 whether goals are met or not: they are printed as they are."""
    parser = argparse.ArgumentParser(prog="bench.vllm")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of rounds a phase (default 12)")
    parser.add_argument("--short", action="store_true", help="two pairs a phase, which are only printed: for a look")
    parser.add_argument("--out", type=Path, help="results file (default: bench/vllm.json, unless --short)")
    options = parser.parse_args()
    machine, phases = describe(), []
    for phase in run(2 if options.short else options.rounds):
        phases.append(phase)
        for row in phase.rows():
            print(told(row), flush=True)
    out = options.out or (None if options.short else RESULTS)
    if out is not None:
        rows = [asdict(row) for phase in phases for row in phase.rows()]
        rounds = {phase.name: asdict(phase) for phase in phases}
        made = {"machine": machine, "load": asdict(Load()), "rows": rows, "rounds": rounds}
        out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


def told(row: Row) -> str:
    """One line."""
    interval = "" if row.interval is None else f" [{row.interval[0]:.3g}, {row.interval[1]:.3g}]"
    goal = "" if row.goal is None else f" (goal {row.goal}: {'met' if row.met else 'missed'})"
    return f"{row.name}: {row.value:.3g}{interval}{goal}"


if __name__ == "__main__":
    raise SystemExit(main())
