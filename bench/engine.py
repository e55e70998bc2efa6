"""What the tap costs the engine: SmolLM2 generating, with the tap and without it, alternately in one process.

Two measures, because noise hides 1 % of throughput: paired throughput, and the tap's CPU time on the engine's own thread as a
share of the forward pass that it rides on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from bench.row import Row, at_most, median_interval
from bench.service import child

_ROUNDS, _NEW_TOKENS, _BATCH = 16, 24, 4
_CACHE = {
    "num_blocks": 32,
    "page_size": 32,
    "max_batch_tokens": 128,
}  # some MB: by default it takes most of the memory
_CONNECT_S = 60.0
_DEFAULT = "default sampling, 10 % of requests"
_PROMPTS = (
    "Explain to a child why the sky is blue.",
    "Write two sentences about how bread is made.",
    "List three things to check before a long bicycle ride.",
    "What is the capital of Portugal, and which river flows through it?",
)


def measure() -> list[Row]:
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
    rows: list[Row] = []
    for fraction, name in ((0.1, _DEFAULT), (1.0, "everything")):
        rows += _condition(model, tokenizer, batch, fraction, name)
    with _continuous(model, tokenizer) as served:
        rows += _condition(model, tokenizer, served, 0.1, f"continuous batching, {_DEFAULT}")
    return rows


def _condition(model: Any, tokenizer: Any, generate: Callable[[], float], fraction: float, name: str) -> list[Row]:
    from sidecar.demo.options import shipped_artifacts
    from sidecar.tap.client import TapClient
    from sidecar.tap.identity import identify

    with tempfile.TemporaryDirectory(prefix="ste-", dir="/tmp") as home:
        address = f"unix:{home}/run/s.sock"
        serve = ["-m", "sidecar.cli", "serve", "--address", address, "--artifacts", str(shipped_artifacts())]
        serve += ["--metrics-port", "0", "--log-level", "ERROR", "--set", f"sampling.request_fraction={fraction}"]
        with child(*serve):
            client = TapClient(address, identify(model, tokenizer), engine_id="bench")
            client.start()
            _wait(lambda: bool(client.settings.tap_points))
            made = _rounds(model, generate, client, name)
            client.stop(5.0)
            counts = client.counts()
    made.append(
        Row(
            f"batches dropped or unanswered, {name}",
            counts.dropped + counts.unknown,
            "== 0",
            not counts.dropped + counts.unknown,
        )
    )
    return made


def _rounds(model: Any, generate: Callable[[], float], client: Any, name: str) -> list[Row]:
    from sidecar.tap.transformers import attach

    bare, tapped = [], []
    tap_ns = forward_ns = steps = 0
    generate()  # warm
    for number in range(_ROUNDS):
        for with_tap in (True, False) if number % 2 else (False, True):
            if not with_tap:
                bare.append(generate())
                continue
            tap = attach(model, client=client, measure_cost=True)
            tapped.append(generate())
            cost = tap.cost()
            tap_ns, forward_ns, steps = tap_ns + cost.tap_cpu_ns, forward_ns + cost.forward_cpu_ns, steps + cost.steps
            tap.detach()
    value, interval = median_interval(
        np.array(bare) / np.array(tapped)
    )  # seconds: bare / tapped is a ratio of throughputs
    note = (
        f"{_ROUNDS} pairs of {_BATCH} x {_NEW_TOKENS} tokens; goal: the interval includes 1 and begins at 0.97 or above"
    )
    held = interval[0] >= 0.97 and interval[1] >= 1.0
    share = Row(
        f"engine-thread CPU of the tap / of the forward pass, {name}", tap_ns / forward_ns, note=f"{steps} steps"
    )
    return [
        Row(f"throughput, tapped / not, {name}", value, ">= 0.97", held, interval, note),
        at_most(share, 0.01),
        Row(
            f"engine-thread CPU of the tap per step, us, {name}", tap_ns / steps / 1e3, note="absolute, of this machine"
        ),
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
