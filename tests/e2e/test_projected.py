"""Projected mode through the real model, the real tap and the real service: the same readings as in raw mode, plan by plan."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sidecar.pipeline
from sidecar.demo.options import shipped_artifacts
from sidecar.reading.read import Readings
from sidecar.reading.read import read as real_read
from sidecar.types import StepBatch
from tests.waiting import until

pytestmark = pytest.mark.model

PROMPTS = (
    "A warm, funny and beautifully acted film that I would happily watch again tomorrow.",
    "No.",
    "URGENT: your account wins a 1000 pound bonus. Text CLAIM to 80800 today, offer ends soon!",
)
NEW_TOKENS = 6
LIMITS = {"limits.rows": 4096, "listen.max_message_bytes": 1 << 25, "ladder.enabled": False}  # however slow: all of it
Seen = list[tuple[StepBatch, Readings]]


@pytest.fixture(scope="module")
def engine(smollm2) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(smollm2, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval(), tokenizer


@pytest.fixture
def seen(monkeypatch) -> Seen:
    """Every batch with its readings, as the service made them. Tensors are copied: they lie in a slot of the ring."""
    kept: Seen = []
    lock = threading.Lock()

    def recording(plan, batch, *more):
        readings = real_read(plan, batch, *more)
        tensors = tuple(replace(tensor, values=tensor.values.copy()) for tensor in batch.tensors)
        with lock:
            kept.append((replace(batch, tensors=tensors), readings))
        return readings

    monkeypatch.setattr(sidecar.pipeline, "read", recording)
    return kept


def by_place(seen: Seen) -> dict[tuple[str, int, str], tuple[float, float]]:
    """(request, position, signal) to its reading, and the norm of its row where the tap told it."""
    found = {}
    for batch, readings in seen:
        tensors = {tensor.tap_point: tensor for tensor in batch.tensors}
        positions = batch.segments.positions
        owners = np.repeat(np.arange(len(batch.segments.request_ids)), batch.segments.rows)
        for s, signal in enumerate(readings.plan.signals):
            tensor = tensors[signal.tap_point]
            for row in np.flatnonzero(readings.valid[:, s]):
                norm = float(np.sqrt(tensor.values[row, -1])) if tensor.projected else 0.0
                place = (batch.segments.request_ids[owners[row]], int(positions[row]), signal.name)
                found[place] = (float(readings.values[row, s]), norm)
    return found


def generate(engine: tuple[Any, Any], address: str, rounds: int = 1, between: Any = None) -> None:
    from sidecar.tap.transformers import attach
    from sidecar.types import SamplingPolicy

    model, tokenizer = engine
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    tap = attach(model, tokenizer=tokenizer, address=address, sampling=SamplingPolicy(1.0))
    try:
        until(lambda: tap.client.connected and bool(tap.client.settings.tap_points))
        until(lambda: tap.client.settings.mode == "raw" or tap.client.plan is not None)
        for number in range(rounds):
            with tap.requests([f"round-{number}-prompt-{i}" for i in range(len(PROMPTS))]):
                model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
            if between is not None:
                between(tap)
        assert tap.errors() == {}
    finally:
        tap.detach(10.0)


@pytest.mark.shows("transformers", "projected mode")
def test_readings_are_those_of_raw_mode_within_the_stated_bound(engine, seen, serve, home: Path):
    """Two float32 sums of the same products differ by 2 D u / (1 - D u) |x| |w| at most; adding the offset rounds once more."""
    raw = serve(**{"artifacts.folder": str(shipped_artifacts()), **LIMITS})
    generate(engine, raw.address)
    raw.stop()
    wanted = by_place(seen)
    seen.clear()
    running = serve(
        **{
            "artifacts.folder": str(shipped_artifacts()),
            "sampling.mode": "projected",
            "sampling.sampled_steps": 1.0,
            "data.folder": str(home / "second"),  # a ledger of its own
            **LIMITS,
        }
    )
    generate(engine, running.address)
    assert all(tensor.projected for batch, _ in seen for tensor in batch.tensors)
    found = by_place(seen)
    assert found.keys() == wanted.keys()
    assert len(found) > 3 * len(PROMPTS)
    plan = seen[-1][1].plan
    unit = plan.model.width * 2.0**-24
    for (request, place, name), (value, norm) in found.items():
        (signal,) = (one for one in plan.signals if one.name == name)
        tap_plan = plan.taps[signal.tap_point]
        weight = float(np.linalg.norm(tap_plan.directions[:, signal.column].astype(np.float64)))
        bound = 2 * unit / (1 - unit) * norm * weight + 2.0**-22 * abs(value)
        assert abs(value - wanted[request, place, name][0]) <= bound, (request, place, name)
    checked = sum(tap.checked_rows for _, readings in seen for tap in readings.taps)
    wrong = sum(tap.wrong_rows for _, readings in seen for tap in readings.taps)
    assert checked > 0
    assert wrong == 0
    status = running.status()
    assert (status.taps.sent, status.taps.ok) == (status.step_batches.received, status.step_batches.scored)
    until(lambda: all(not one.blind and one.expected == one.seen > 0 for one in running.status().coverage))


def test_a_plan_that_changes_under_load_is_swapped_between_steps(engine, seen, serve, home: Path):
    """A probe is taken away and comes back while the model generates: every batch says which plan it was multiplied by."""
    folder = home / "changing"
    shutil.copytree(shipped_artifacts(), folder)
    running = serve(**{"artifacts.folder": str(folder), "sampling.mode": "projected", **LIMITS})

    def change(tap: Any) -> None:
        before = tap.client.plan.generation
        if (folder / "sentiment").exists():
            shutil.rmtree(folder / "sentiment")
        else:
            shutil.copytree(shipped_artifacts() / "sentiment", folder / "sentiment")
        until(lambda: tap.client.plan.generation > before)

    generate(engine, running.address, rounds=4, between=change)
    generations = [batch.plan_generation for batch, _ in seen]
    assert len(set(generations)) == 4
    assert generations == sorted(generations)
    for batch, readings in seen:
        assert readings.generation == batch.plan_generation
    with_it = {name for _, _, name in by_place([one for one in seen if one[0].plan_generation == generations[0]])}
    without = {
        name for _, _, name in by_place([one for one in seen if one[0].plan_generation == generations[NEW_TOKENS]])
    }
    assert with_it - without == {"sentiment"}
    status = running.status()
    assert (status.taps.sent, status.taps.ok) == (status.step_batches.received, status.step_batches.scored)
