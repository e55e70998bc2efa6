"""What the tap costs transformers: SmolLM2 generating, with the tap and without it, alternately in one process.

Throughput and the slowest steps are ratios, round by round; and so is the tap's CPU time on the engine's own thread, to that of the
forward pass that it rides on, since noise hides 1 % of throughput. Every round is kept in the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bench.row import Row, RowOfRounds, ratio_of_rounds
from bench.serving import home, serving
from sidecar.tap.cost import TapCost

_NEW_TOKENS, _BATCH = 8, 4
_CACHE = {"num_blocks": 32, "page_size": 32, "max_batch_tokens": 128}  # some MB: by default it takes most of the memory
_CONNECT_S = 60.0
_DEFAULT = "default sampling, 10 % of requests"
_IDLE = "attached, no sidecar"
_PROMPTS = (
    "Explain to a child why the sky is blue.",
    "Write two sentences about how bread is made.",
    "List three things to check before a long bicycle ride.",
    "What is the capital of Portugal, and which river flows through it?",
)


class _Round(NamedTuple):
    """Seconds of all of it, and of each decode step of the batch; of each request where they come one by one."""

    took_s: float
    each_s: list[float]

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.each_s, 0.99))


@dataclass(slots=True)
class _Pairs:
    """Rounds without and with the tap, and what it cost on the engine's thread in each of the latter."""

    bare: list[_Round] = field(default_factory=list)
    tapped: list[_Round] = field(default_factory=list)
    costs: list[TapCost] = field(default_factory=list)


def measure(*, short: bool = False) -> list[Row]:
    """No sidecar, default sampling (a tenth of the requests) and everything, each against no tap; the default under continuous
    batching too.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from probes.smollm2 import prepared_model

    torch.set_num_threads(1)
    folder = prepared_model(progress=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    inputs = tokenizer(list(_PROMPTS[:_BATCH]), return_tensors="pt", padding=True)
    batch = partial(_generate, model, inputs)
    pairs = 3 if short else 24
    rows = _idle(model, tokenizer, batch, pairs)
    rows += _condition(model, tokenizer, batch, 0.1, _DEFAULT, pairs)
    if not short:
        rows += _condition(model, tokenizer, batch, 1.0, "everything", pairs)
        with _continuous(model, tokenizer) as served:
            rows += _condition(model, tokenizer, served, 0.1, f"continuous batching, {_DEFAULT}", pairs)
    return rows


def _idle(model: Any, tokenizer: Any, generate: Callable[[], _Round], pairs: int) -> list[Row]:
    """The tap looks for a sidecar, and there is none."""
    from sidecar.tap.client import TapClient
    from sidecar.tap.identity import identify

    with home() as folder:
        client = TapClient(f"unix:{folder}/nobody.sock", identify(model, tokenizer), engine_id="bench")
        client.start()
        made = _paired(model, generate, client, pairs)
        client.stop(5.0)
    return _rows(made, _IDLE)


def _condition(
    model: Any, tokenizer: Any, generate: Callable[[], _Round], fraction: float, name: str, pairs: int
) -> list[Row]:
    from sidecar.demo.options import shipped_artifacts
    from sidecar.tap.client import TapClient
    from sidecar.tap.identity import identify

    with serving(shipped_artifacts(), f"sampling.request_fraction={fraction}") as served:
        client = TapClient(served.address, identify(model, tokenizer), engine_id="bench")
        client.start()
        _wait(lambda: client.connected)
        made = _paired(model, generate, client, pairs)
        client.stop(5.0)
        counts = client.counts()
    lost = counts.dropped + counts.unknown
    return [*_rows(made, name), Row(f"batches dropped or unanswered, {name}", lost, "== 0", lost == 0)]


def _paired(model: Any, generate: Callable[[], _Round], client: Any, pairs: int) -> _Pairs:
    from sidecar.tap.transformers import attach

    made = _Pairs()
    generate()  # warm
    for number in range(pairs):
        for with_tap in (True, False) if number % 2 else (False, True):
            if not with_tap:
                made.bare.append(generate())
                continue
            tap = attach(model, client=client, measure_cost=True)
            made.tapped.append(generate())
            made.costs.append(tap.cost())
            tap.detach()
    return made


def _rows(made: _Pairs, name: str) -> list[Row]:
    tap_ns, forward_ns = ([getattr(one, which) for one in made.costs] for which in ("tap_cpu_ns", "forward_cpu_ns"))
    steps = sum(one.steps for one in made.costs)
    share = f"engine-thread CPU of the tap / of the step, {name}"
    each = f"engine-thread CPU of the tap per step, us, {name}"
    told = f"{steps} steps of SmolLM2-135M"
    return [
        _throughput(made, name),
        _slowest(made, name),
        ratio_of_rounds(share, tap_ns, forward_ns, ("tap ns", "forward ns"), told).at_most(0.01),
        Row(each, sum(tap_ns) / steps / 1e3, note="absolute, of this machine"),
    ]


def _throughput(made: _Pairs, name: str) -> Row:
    """A ratio of throughputs: the seconds of the rounds, the other way round."""
    note = f"{len(made.bare)} pairs of {_BATCH} x {_NEW_TOKENS} tokens; goal: the interval includes 1 and begins at 0.97 or above"
    sides = [one.took_s for one in made.bare], [one.took_s for one in made.tapped]
    found = ratio_of_rounds(f"throughput, tapped / not, {name}", *sides, ("untapped s", "tapped s"), note)
    low, high = found.interval or (0.0, 0.0)
    return replace(found, goal=">= 0.97", met=0.97 <= low <= 1.0 <= high)


def _slowest(made: _Pairs, name: str) -> RowOfRounds:
    sides = [one.p99_s for one in made.tapped], [one.p99_s for one in made.bare]
    note = "of a round's decode steps, or of its requests under continuous batching"
    return ratio_of_rounds(f"p99, tapped / not, {name}", *sides, ("tapped s", "untapped s"), note)


def _generate(model: Any, inputs: Any) -> _Round:
    import torch

    clock, start = _Clock(), time.perf_counter()
    with torch.no_grad():
        model.generate(
            **inputs,
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
    _prompt, *decoding = clock.at_s
    return _Round(time.perf_counter() - start, [later - sooner for sooner, later in pairwise(decoding)])


class _Clock:
    """A streamer of ``generate``: notes when it is given the prompt, and then the tokens of each step, and keeps none."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def put(self, _tokens: Any) -> None:
        self.at_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is open."""


@contextmanager
def _continuous(model: Any, tokenizer: Any) -> Iterator[Callable[[], _Round]]:
    """The same prompts to one engine that stays up, as a server's does; the tap comes and goes between the rounds."""
    import transformers

    auto: Any = transformers  # its configurations have no types
    manager = model.init_continuous_batching(
        generation_config=auto.GenerationConfig(
            max_new_tokens=_NEW_TOKENS, eos_token_id=-1, pad_token_id=0, do_sample=False
        ),
        continuous_batching_config=auto.ContinuousBatchingConfig(**_CACHE),
    )
    manager.start()
    prompts = [tokenizer(text)["input_ids"] for text in _PROMPTS[:_BATCH]]

    def served() -> _Round:
        start, came = time.perf_counter(), []
        asked = {manager.add_request(prompt) for prompt in prompts}
        while asked:
            answer = manager.get_result(timeout=_CONNECT_S)
            if answer is None or len(answer.generated_tokens) != _NEW_TOKENS:
                raise RuntimeError("continuous batching did not answer in full")
            asked.remove(answer.request_id)
            came.append(time.perf_counter() - start)
        return _Round(max(came), came)

    try:
        yield served
    finally:
        manager.stop(block=True, timeout=_CONNECT_S)


def _wait(ready: Any) -> None:
    ends_s = time.monotonic() + _CONNECT_S
    while not ready():
        if time.monotonic() > ends_s:
            raise RuntimeError("the tap did not connect")
        time.sleep(0.05)
