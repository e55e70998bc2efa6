"""Through the real model and the real service: every reading is that of the same request, at the same position."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sidecar.pipeline
from sidecar.demo.options import shipped_artifacts
from sidecar.reading.read import Readings
from sidecar.reading.read import read as real_read
from sidecar.types import StepBatch
from tests.e2e.own import python_block
from tests.waiting import until

pytestmark = pytest.mark.model

PROMPTS = (
    "A warm, funny and beautifully acted film that I would happily watch again tomorrow.",
    "No.",
    (
        "Explain to a child, in a few friendly words and with one everyday example, why the sky is blue in the daytime and "
        "red in the evening, and why the sea often has the colour of the sky above it."
    ),
    "What a dull, lifeless mess of a film.",
    "List three things.",
)
NEW_TOKENS = 6
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine(smollm2) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(smollm2, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval(), tokenizer


@pytest.fixture
def seen(monkeypatch) -> list[tuple[StepBatch, Readings]]:
    """Every batch with its readings, as the service made them."""
    kept: list[tuple[StepBatch, Readings]] = []
    lock = threading.Lock()

    def recording(plan, batch, *rest):
        readings = real_read(plan, batch, *rest)
        with lock:
            kept.append((batch, readings))
        return readings

    monkeypatch.setattr(sidecar.pipeline, "read", recording)
    return kept


def by_place(seen: list[tuple[StepBatch, Readings]]) -> Iterator[tuple[str, int, int, str, float]]:
    """(request, position, phase, signal, reading) of everything that was read."""
    for batch, readings in seen:
        segments, plan = batch.segments, readings.plan
        columns = range(len(plan.signals)) if plan.firsts is None else plan.firsts.tolist()
        for g, request in enumerate(segments.request_ids):
            for row in range(segments.starts[g], segments.starts[g] + segments.rows[g]):
                for s, signal in enumerate(plan.signals):
                    if readings.valid[row, s]:
                        place = int(segments.positions[row])
                        yield (
                            request,
                            place,
                            int(segments.phases[g]),
                            signal.name,
                            float(readings.values[row, columns[s]]),
                        )


def reference(model: Any, ids: list[int], plan: Any, pad: int = 0) -> dict[tuple[int, str], float]:
    """Readings at (position, signal) from hidden_states of one plain forward pass; ``pad`` tokens of padding on the left."""
    import torch

    row = torch.tensor([[0] * pad + ids])
    mask = torch.tensor([[0] * pad + [1] * len(ids)])
    positions = torch.tensor([[0] * pad + list(range(len(ids)))])
    with torch.no_grad():
        states = model(row, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states
    made = {}
    for signal in plan.signals:
        tap = plan.taps[signal.tap_point]
        rows = states[signal.tap_point.layer + 1][0, pad:].double().numpy()
        readings = rows @ tap.directions[:, signal.column].astype(np.float64) + float(tap.offsets[signal.column])
        made.update({(place, signal.name): float(value) for place, value in enumerate(readings)})
    return made


def test_a_padded_batch_reads_what_each_prompt_reads_alone(engine, seen, serve):
    from sidecar.tap.transformers import attach
    from sidecar.types import SamplingPolicy

    model, tokenizer = engine
    running = serve(
        **{"artifacts.folder": str(shipped_artifacts()), "limits.rows": 4096, "listen.max_message_bytes": 1 << 25}
    )
    names = [f"prompt-{i}" for i in range(len(PROMPTS))]
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    tap = attach(model, tokenizer=tokenizer, address=running.address, sampling=SamplingPolicy(1.0))
    try:
        until(lambda: tap.client.connected and bool(tap.client.settings.tap_points))
        with tap.requests(names):
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    finally:
        tap.detach(10.0)
    plan = running.plans.plan
    assert plan is not None
    readings = {(request, place, name): (phase, value) for request, place, phase, name, value in by_place(seen)}

    expected, noise = {}, []
    for i, name in enumerate(names):
        keep = inputs["attention_mask"][i].bool()
        ids = inputs["input_ids"][i][keep].tolist() + out[i, inputs["input_ids"].shape[1] : -1].tolist()
        alone = reference(model, ids, plan)
        padded = reference(model, ids, plan, pad=7)  # the model's own spread between two ways to say the same
        noise += [abs(alone[key] - padded[key]) for key in alone]
        prompt = int(keep.sum())
        for place in range(1, len(ids)):  # position 0 is skipped by every shipped probe
            for signal in plan.signals:
                if signal.span == "prompt" and place >= prompt:
                    continue
                expected[name, place, signal.name] = alone[place, signal.name]
    assert readings.keys() == expected.keys()
    worst = max(abs(readings[key][1] - expected[key]) for key in expected)
    scale = np.std(list(expected.values()))
    tolerance = 10 * max(noise)
    assert 0 < tolerance < 0.01 * scale, "the tolerance would not tell one request from another"
    assert worst <= tolerance
    status = running.status()
    assert [(one.expected, one.seen, one.blind) for one in status.coverage] == [
        (status.coverage[0].expected, status.coverage[0].expected, False) for _ in status.coverage
    ]
    assert (status.taps.sent, status.taps.ok) == (status.step_batches.received, status.step_batches.scored)


def test_praise_scores_above_complaint(engine, serve):
    """The shipped sentiment probe means what it says, on prompts as the server sees them."""
    from sidecar.tap.transformers import attach
    from sidecar.types import SamplingPolicy

    model, tokenizer = engine
    scores = {}
    for mood, text in (("praise", PROMPTS[0]), ("complaint", PROMPTS[3])):
        running = serve(
            **{
                "artifacts.folder": str(shipped_artifacts()),
                "limits.rows": 4096,
                "listen.address": "127.0.0.1:0",
                "listen.max_message_bytes": 1 << 25,
            }
        )
        tap = attach(model, tokenizer=tokenizer, address=running.address, sampling=SamplingPolicy(1.0))
        try:
            until(lambda tap=tap: tap.client.connected and bool(tap.client.settings.tap_points))
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            model.generate(**chat, max_new_tokens=2, do_sample=False)
        finally:
            tap.detach(10.0)
        until(lambda running=running: sentiment(running).requests == 1)
        scores[mood] = sentiment(running).request_scores.total
    assert scores["praise"] > scores["complaint"] + 0.2, scores


def sentiment(running):
    return next(one for one in running.snapshot().signals if one.name == "sentiment")


@pytest.mark.parametrize("shift", [-4, 4])
def test_a_hook_that_moved_to_another_block_reads_its_control_wrong(engine, serve, shift):
    """The count of tokens is right, and still something is: the shipped control knows its own block."""
    import torch

    from sidecar.tap.transformers import attach
    from sidecar.types import SamplingPolicy

    model, tokenizer = engine
    running = serve(
        **{"artifacts.folder": str(shipped_artifacts()), "limits.rows": 4096, "listen.max_message_bytes": 1 << 25}
    )
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    tap = attach(model, tokenizer=tokenizer, address=running.address, sampling=SamplingPolicy(1.0))

    def states() -> dict[str, str]:
        with torch.no_grad():
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        return {one.tap_point: one.reason for one in running.status().coverage}

    try:
        until(lambda: tap.client.connected and bool(tap.client.settings.tap_points))
        assert set(states().values()) == {""}
        blocks = model.get_decoder().layers
        layer = max(point.layer for point in tap.points)
        moved = dict(blocks[layer]._forward_hooks)
        blocks[layer]._forward_hooks.clear()
        blocks[layer + shift]._forward_hooks.update(moved)
        until(lambda: states()[f"blocks.{layer}.resid_post"] == "control_out_of_range")
        assert all(not reason for name, reason in states().items() if name != f"blocks.{layer}.resid_post")
    finally:
        tap.detach(10.0)
        for block in model.get_decoder().layers:
            block._forward_hooks.clear()


def test_the_readmes_five_lines_are_enough(smollm2, serve, monkeypatch):
    running = serve(**{"artifacts.folder": str(shipped_artifacts()), "limits.rows": 4096, "listen.max_message_bytes": 1 << 25,
                       "sampling.request_fraction": 1.0})  # fmt: skip
    monkeypatch.setenv("STETHOSCOPE_ADDRESS", running.address)
    names: dict[str, Any] = {"folder": smollm2}
    exec(compile(python_block(ROOT / "README.md"), "README.md", "exec"), names)
    tap = names["tap"]
    try:
        until(lambda: tap.client.connected and bool(tap.client.settings.tap_points))
        names["model"].generate(
            **names["AutoTokenizer"].from_pretrained(smollm2)("Hello there", return_tensors="pt"), max_new_tokens=3
        )
    finally:
        tap.detach(10.0)
    assert all(one.evidence != "refused" and "stale" not in one.evidence for one in running.status().artifacts)
    assert running.status().rows.scored > 0
