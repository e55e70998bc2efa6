"""What the tap costs an engine that is bound by its own Python: the engine is a stand-in, the tap and the sidecar are real.

A step holds the interpreter for some 2.4 ms and lets go of it for 0.4 ms, as an engine does that waits for a fast device; a
part of 32 requests is captured at two tap points. Four contenders take turns: the engine alone, twice (what differs between the two
is noise), tapped with a batch for every step as by default, and tapped by a sender that
lingers. ``python -m bench.interpreter [--short]``; results with every round in bench/interpreter.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.artifacts import BENCH_MODEL
from bench.machine import describe
from bench.row import Row, median_interval, ratio
from bench.serving import Served, serving_plan
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.tap.vllm import v1
from sidecar.tap.vllm.shelf import Shelf
from sidecar.tap.vllm.watch import StepWatch
from sidecar.types import ModelIdentity, TapPoint
from tests.tap.vllm_runners import FirstRunner, new, scheduled

RESULTS = Path(__file__).parent / "interpreter.json"
WIDTH, TAPS, REQUESTS, PROMPT, DIRECTIONS = 2048, 2, 32, 16, 64
_HELD_S, _FREE_S = 0.0024, 0.0004
_CONNECT_S = 60.0
_QUEUE_S = 5.0  # nobody is to win by dropping
_LINGER_S = 0.02
ALONE, AGAIN, AT_ONCE, LINGERING = "alone", "alone again", "a batch a step", "lingering 20 ms"
SHARES = {0.1: "10 % of requests", 1.0: "every request"}


class Round(NamedTuple):
    """Of one step: seconds of the clock, and CPU seconds of the tap on the engine's thread and of all other threads."""

    step_s: float
    tap_s: float
    others_s: float


class Engine:
    """Work that holds the interpreter. Calibrated when it is made; owned by one thread."""

    def __init__(self) -> None:
        count = 100_000
        took_s = min(self._timed(count) for _ in range(5))
        self._count = int(count * _HELD_S / took_s)

    def run(self, steps: int, tap: Callable[[], None] | None) -> Round:
        """So many steps; ``tap`` has its turn at the end of each."""
        tap_s, begun_s, cpu_s, own_s = 0.0, time.perf_counter(), time.process_time(), time.thread_time()
        for _ in range(steps):
            self._work(self._count)
            time.sleep(_FREE_S)
            if tap is not None:
                start_s = time.thread_time()
                tap()
                tap_s += time.thread_time() - start_s
        others_s = time.process_time() - cpu_s - (time.thread_time() - own_s)
        return Round((time.perf_counter() - begun_s) / steps, tap_s / steps, others_s / steps)

    def _timed(self, count: int) -> float:
        start_s = time.perf_counter()
        self._work(count)
        return time.perf_counter() - start_s

    @staticmethod
    def _work(count: int) -> int:
        total, seen = 0, dict.fromkeys(range(64), 0)
        for number in range(count):
            seen[number & 63] = number
            total += seen[number & 31]
        return total


class Tapped:
    """Decode steps of an engine whose tap is connected: what vLLM's plugin does in them, by the plugin's own code.

    Only the runner that it is wrapped around is a stand-in, whose own methods do nothing.
    """

    def __init__(self, client: TapClient, share: float) -> None:
        self.client = client
        points = tuple(TapPoint(layer) for layer in range(TAPS))
        self._runner = FirstRunner([torch.randn(REQUESTS, WIDTH).to(torch.bfloat16) for _ in points])
        shelf = Shelf(REQUESTS, {}, torch.device("cpu"), torch.bfloat16)
        self._watch = StepWatch(client, shelf, guesses_told=True, ahead=False)
        self._watch.points = self._watch.auxiliary = points
        v1.wrap(self._runner, self._watch)
        self._decode, chosen = scheduled(REQUESTS), round(REQUESTS * share)
        names = [f"chatcmpl-{i:08x}-{i:08x}" for i in range(REQUESTS)]
        news = [new(name, PROMPT, stethoscope="always" if i < chosen else "never") for i, name in enumerate(names)]
        self._watch.follow(scheduled(0, news))
        self._runner.fill(dict.fromkeys(names, (1, PROMPT)))

    def step(self) -> None:
        self._runner.again(self._decode)

    @property
    def faults(self) -> dict[str, int]:
        return self._watch.faults.counts()


@contextmanager
def tapped(served: Served, share: float, limits: LinkLimits, name: str) -> Iterator[Tapped]:
    """Raises RuntimeError if the tap does not connect, or survived a bug of its own."""
    client = TapClient(served.address, ModelIdentity(**{**BENCH_MODEL, "width": WIDTH}), engine_id=name, limits=limits)
    client.start()
    ends_s = time.monotonic() + _CONNECT_S
    while not client.connected:
        if time.monotonic() > ends_s:
            raise RuntimeError("the tap did not connect")
        time.sleep(0.02)
    made = Tapped(client, share)
    try:
        yield made
    finally:
        client.stop(5.0)
    if client.errors or made.faults:
        raise RuntimeError(f"the tap survived {client.errors} errors and {made.faults}")


@dataclass(frozen=True, slots=True)
class Turns:
    """Rounds of every contender, and what became of the steps of the sender that lingers."""

    rounds: dict[str, list[Round]]
    batches_per_step: float
    dropped: int


def turns(share: float, rounds: int, steps: int) -> Turns:
    """In another order every round. A first round of each warms and is not kept."""
    torch.set_num_threads(1)
    with serving_plan(WIDTH, TAPS, DIRECTIONS) as served, ExitStack() as stack:
        at_once = stack.enter_context(tapped(served, share, LinkLimits(queue_s=_QUEUE_S), "at-once"))
        lingers = stack.enter_context(
            tapped(served, share, LinkLimits(linger_s=_LINGER_S, queue_s=_QUEUE_S), "lingers")
        )
        taps = {ALONE: None, AT_ONCE: at_once.step, AGAIN: None, LINGERING: lingers.step}
        engine, names, order = Engine(), list(taps), np.random.default_rng(0)
        made: dict[str, list[Round]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name in order.permutation(names).tolist():
                taken = engine.run(steps, taps[name])
                if number:
                    made[name].append(taken)
        lingers.client.stop(5.0)
        counts = lingers.client.counts()
    return Turns(made, counts.sent / (steps * (rounds + 1)), counts.dropped + counts.unknown)


def rows_of(made: Turns, what: str) -> list[Row]:
    bare = [one.step_s for one in made.rounds[ALONE]]
    idle_s = float(np.median([one.others_s for one in made.rounds[ALONE] + made.rounds[AGAIN]]))
    rows = [_throughput(made, AGAIN, bare, f"throughput, alone again / alone, {what}", "what is noise")]
    for name in (AT_ONCE, LINGERING):
        rounds = made.rounds[name]
        rows.append(_throughput(made, name, bare, f"throughput, tapped / alone, {what}, {name}", f"{len(bare)} rounds"))
        rows.append(_us(f"engine-thread CPU of the tap per step, us, {what}, {name}", [one.tap_s for one in rounds]))
        others = [one.others_s - idle_s for one in rounds]
        rows.append(_us(f"CPU of the tap's other threads per step, us, {what}, {name}", others))
    rows.append(Row(f"batches a step, {what}, {LINGERING}", made.batches_per_step))
    rows.append(Row(f"batches dropped or unanswered, {what}, {LINGERING}", made.dropped, "== 0", made.dropped == 0))
    return rows


def _throughput(made: Turns, name: str, bare: list[float], what: str, note: str) -> Row:
    return ratio(what, bare, [one.step_s for one in made.rounds[name]], note)


def _us(name: str, seconds: list[float]) -> Row:
    value, interval = median_interval([1e6 * one for one in seconds])
    return Row(name, value, interval=interval, note="absolute, of this machine")


def measure(*, short: bool = False) -> list[Row]:
    return [row for _, rows in _measured(short=short) for row in rows]


def _measured(*, short: bool) -> Iterator[tuple[Turns, list[Row]]]:
    rounds, steps = (6, 40) if short else (48, 60)
    for share, what in SHARES.items():
        made = turns(share, rounds, steps)
        yield made, rows_of(made, what)


def main(arguments: list[str] | None = None) -> int:
    """0 whether goals are met or not: they are printed as they are."""
    parser = argparse.ArgumentParser(
        prog="bench.interpreter", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--short", action="store_true", help="fewer rounds: for a look, not for the record")
    parser.add_argument("--out", type=Path, help="results file (default: bench/interpreter.json for a full run)")
    args = parser.parse_args(arguments)
    machine, rows, rounds = describe(), [], {}
    for (made, found), what in zip(_measured(short=args.short), SHARES.values(), strict=True):
        rows += found
        rounds[what] = {name: [list(one) for one in taken] for name, taken in made.rounds.items()}
    for row in rows:
        print(f"{row.name:75} {row.value:8.3f}  {'' if row.interval is None else row.interval}")
    out = args.out if args.out is not None else (None if args.short else RESULTS)
    if out is not None:
        told = {"machine": machine, "rows": [asdict(row) for row in rows], "rounds": rounds, "columns": Round._fields}
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
