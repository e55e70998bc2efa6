"""What the tap costs the engine: SmolLM2 generating, with the tap and without it, alternately in one process.

Two measures, because noise hides 1 % of throughput: paired throughput, and the tap's CPU time on the engine's own thread as a
share of the forward pass that it rides on.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np

from bench.row import Row, at_most, median_interval
from bench.service import child

_ROUNDS, _NEW_TOKENS, _BATCH = 16, 24, 4
_CONNECT_S = 60.0
_PROMPTS = (
    "Explain to a child why the sky is blue.",
    "Write two sentences about how bread is made.",
    "List three things to check before a long bicycle ride.",
    "What is the capital of Portugal, and which river flows through it?",
)


def measure() -> list[Row]:
    """Default sampling (a tenth of the requests) and everything, each against no tap."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from probes.smollm2 import prepared_model

    torch.set_num_threads(1)
    folder = prepared_model(progress=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    inputs = tokenizer(list(_PROMPTS[:_BATCH]), return_tensors="pt", padding=True)
    rows: list[Row] = []
    for fraction, name in ((0.1, "default sampling, 10 % of requests"), (1.0, "everything")):
        rows += _condition(model, tokenizer, inputs, fraction, name)
    return rows


def _condition(model: Any, tokenizer: Any, inputs: Any, fraction: float, name: str) -> list[Row]:
    from sidecar.demo.run import shipped_artifacts
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
            made = _rounds(model, inputs, client, name)
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


def _rounds(model: Any, inputs: Any, client: Any, name: str) -> list[Row]:
    from sidecar.tap.transformers import attach

    bare, tapped = [], []
    tap_ns = forward_ns = steps = 0
    _generate(model, inputs)  # warm
    for number in range(_ROUNDS):
        for with_tap in (True, False) if number % 2 else (False, True):
            if not with_tap:
                bare.append(_generate(model, inputs))
                continue
            tap = attach(model, client=client, measure_cost=True)
            tapped.append(_generate(model, inputs))
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


def _wait(ready: Any) -> None:
    ends_s = time.monotonic() + _CONNECT_S
    while not ready():
        if time.monotonic() > ends_s:
            raise RuntimeError("the tap did not connect")
        time.sleep(0.05)
