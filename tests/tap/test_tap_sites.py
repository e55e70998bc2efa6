"""What is captured at the three sites is what hooks of the test's own see there: in every way of serving, raw and projected."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch

from sidecar.tap.plan import FetchedPlan, PointPlan
from sidecar.types import Site, TapPoint
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import PROMPTS, tapped
from tests.tap.generating import NAMES, generate
from tests.tap.models import WIDTH, library, tiny
from tests.tap.projecting import Planned, bound, by_position, kept
from tests.tap.receiver import control
from tests.tap.seeing import HEADS, LAYER, PARTS, POINTS, seeing

architectures = pytest.mark.parametrize("architecture", PARTS)


@architectures
def test_generated_rows_are_bitwise_those_of_hooks_of_ones_own(architecture: str, make_receiver: MakeReceiver) -> None:
    model, receiver = tiny(architecture), make_receiver(control(POINTS))
    plain = generate(model, eos_token_id=None)
    with tapped(model, receiver) as tap, tap.requests(NAMES), seeing(model, architecture) as seen:
        assert torch.equal(generate(model, eos_token_id=None), plain)
        assert (tap.points, tap.errors()) == (tuple(POINTS), {})
    for point in POINTS:
        prefill, *decodes = seen[point]
        found = receiver.rows(point)
        columns = len(prefill) // len(PROMPTS)
        for row, (name, prompt) in enumerate(zip(NAMES, PROMPTS, strict=True)):
            padding = columns - len(prompt)
            wanted = [*prefill[row * columns + padding : (row + 1) * columns], *(step[row] for step in decodes)]
            assert sorted(found[name]) == list(range(len(wanted)))
            assert all(np.array_equal(found[name][position], wanted[position]) for position in found[name])


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.shows("transformers", "heads and MLPs")
def test_rows_of_continuous_batching_are_bitwise_those_of_hooks_of_ones_own(
    architecture: str, make_receiver: MakeReceiver
) -> None:
    model, receiver = tiny(architecture), make_receiver(control(POINTS))
    settings = {
        "generation_config": library().GenerationConfig(
            max_new_tokens=6, eos_token_id=-1, pad_token_id=2, do_sample=False
        ),
        "continuous_batching_config": library().ContinuousBatchingConfig(
            page_size=16, num_blocks=64, max_batch_tokens=64, seed=0
        ),
    }
    with tapped(model, receiver) as tap, seeing(model, architecture) as seen:
        model.generate_batch(PROMPTS, **settings)
        assert tap.errors() == {}
    for point in POINTS:
        steps = [
            tensor for batch in receiver.batches for tensor in batch.tensors if tensor.tap_point.site == _site(point)
        ]
        assert len(steps) == len(receiver.batches)
        rows = {row.tobytes() for step in seen[point] for row in step}
        for name, found in receiver.rows(point).items():
            assert len(found) == len(PROMPTS[int(name.removeprefix("req_"))]) + 5
            assert all(row.tobytes() in rows for row in found.values())


def _site(point: TapPoint) -> int:
    return list(Site).index(point.site) + 1


def test_readings_at_every_site_are_the_raw_rows_times_the_plan() -> None:
    directions = {p: np.random.default_rng(n).normal(size=(WIDTH, 4)).astype(np.float32) for n, p in enumerate(POINTS)}
    points = MappingProxyType({p: PointPlan(tuple("abcd"), d) for p, d in directions.items()})
    model, clients = tiny(), (Planned(FetchedPlan(1, points), asked=POINTS), Planned(None, asked=POINTS))
    clients[1].settings = type(clients[1].settings)(1, clients[1].settings.policy, POINTS)
    for client in clients:
        with kept(model, client) as tap, tap.requests(NAMES):
            generate(model, eos_token_id=None)
            assert tap.errors() == {}
    for point in POINTS:
        rows, readings = by_position(clients[1].steps, point), by_position(clients[0].steps, point)
        assert rows.keys() == readings.keys()
        states, made = np.stack(list(rows.values())), np.stack([readings[key] for key in rows])
        exact = states.astype(np.float64) @ directions[point].astype(np.float64)
        assert (np.abs(made[:, :-1] - exact) <= bound(states, directions[point])).all()


def test_tap_points_can_be_fixed_by_name(make_receiver: MakeReceiver) -> None:
    model, receiver = tiny(), make_receiver(control((0,)))
    with tapped(model, receiver, layers=[2, HEADS.name]) as tap:
        model(torch.tensor([PROMPTS[0]]))
        assert tap.points == (HEADS, TapPoint(2))
    assert {(t.tap_point.layer, t.tap_point.site) for b in receiver.batches for t in b.tensors} == {(1, 2), (2, 1)}


def test_a_block_without_a_known_part_is_said_and_the_others_are_captured(
    make_receiver: MakeReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": 600, "state_size": 4}
    model, receiver = library().MambaForCausalLM(library().MambaConfig(**sizes)).eval(), make_receiver(control(POINTS))
    with tapped(model, receiver) as tap:
        model(torch.tensor([PROMPTS[0]]))
        assert tap.points == (TapPoint(LAYER),)
    assert "tap_point=blocks.1.mlp_out: MambaBlock has none of mlp" in caplog.text
    assert "tap_point=blocks.1.attn_heads: MambaBlock has none of self_attn" in caplog.text
    assert [[t.rows for t in batch.tensors] for batch in receiver.batches] == [[len(PROMPTS[0])]]
