"""What the tap costs the engine: SmolLM2 generating, with the tap and without it, alternately in one process.

Two measures, because noise hides 1 % of throughput: paired throughput, and the tap's CPU time on the engine's own thread as a
share of the forward pass that it rides on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bench.row import Row, median_interval
from bench.serving import serving

_NEW_TOKENS, _BATCH = 8, 4
_CACHE = {"num_blocks": 32, "page_size": 32, "max_batch_tokens": 128}  # some MB: by default it takes most of the memory
_CONNECT_S = 60.0
_DEFAULT = "default sampling, 10 % of requests"
_PROMPTS = (
    "Explain to a child why the sky is blue.",
    "Write two sentences about how bread is made.",
    "List three things to check before a long bicycle ride.",
    "What is the capital of Portugal, and which river flows through it?",
)


@dataclass(slots=True)
class _Pairs:
    """Seconds of generation without and with the tap, and what the tap cost on the engine's thread."""

    bare_s: list[float] = field(default_factory=list)
    tapped_s: list[float] = field(default_factory=list)
    tap_ns: int = 0
    forward_ns: int = 0
    steps: int = 0


def measure(*, short: bool = False) -> list[Row]:
    """Default sampling (a tenth of the requests) and everything, each against no tap; the default under continuous batching too."""
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
    rows = _condition(model, tokenizer, batch, 0.1, _DEFAULT, pairs)
    if not short:
        rows += _condition(model, tokenizer, batch, 1.0, "everything", pairs)
        with _continuous(model, tokenizer) as served:
            rows += _condition(model, tokenizer, served, 0.1, f"continuous batching, {_DEFAULT}", pairs)
    return rows


def _condition(
    model: Any, tokenizer: Any, generate: Callable[[], float], fraction: float, name: str, pairs: int
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


def _paired(model: Any, generate: Callable[[], float], client: Any, pairs: int) -> _Pairs:
    from sidecar.tap.transformers import attach

    made = _Pairs()
    generate()  # warm
    for number in range(pairs):
        for with_tap in (True, False) if number % 2 else (False, True):
            if not with_tap:
                made.bare_s.append(generate())
                continue
            tap = attach(model, client=client, measure_cost=True)
            made.tapped_s.append(generate())
            cost = tap.cost()
            made.tap_ns += cost.tap_cpu_ns
            made.forward_ns += cost.forward_cpu_ns
            made.steps += cost.steps
            tap.detach()
    return made


def _rows(made: _Pairs, name: str) -> list[Row]:
    value, interval = median_interval(np.array(made.bare_s) / np.array(made.tapped_s))  # a ratio of throughputs
    note = f"{len(made.bare_s)} pairs of {_BATCH} x {_NEW_TOKENS} tokens; goal: the interval includes 1 and begins at 0.97 or above"
    held = interval[0] >= 0.97 and interval[0] <= 1.0 <= interval[1]
    share = f"engine-thread CPU of the tap / of the step, {name}"
    each = f"engine-thread CPU of the tap per step, us, {name}"
    return [
        Row(f"throughput, tapped / not, {name}", value, ">= 0.97", held, interval, note),
        Row(share, made.tap_ns / made.forward_ns, note=f"{made.steps} steps of SmolLM2-135M").at_most(0.01),
        Row(each, made.tap_ns / made.steps / 1e3, note="absolute, of this machine"),
    ]


def _generate(model: Any, inputs: Any) -> float:
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        model.generate(
            **inputs, max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=0
        )
    return time.perf_counter() - start


@contextmanager
def _continuous(model: Any, tokenizer: Any) -> Iterator[Callable[[], float]]:
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

    def served() -> float:
        start = time.perf_counter()
        asked = {manager.add_request(prompt) for prompt in prompts}
        while asked:
            answer = manager.get_result(timeout=_CONNECT_S)
            if answer is None or len(answer.generated_tokens) != _NEW_TOKENS:
                raise RuntimeError("continuous batching did not answer in full")
            asked.remove(answer.request_id)
        return time.perf_counter() - start

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
