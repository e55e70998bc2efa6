"""What is read at a site is what the model computes there, whatever its architecture calls the site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes.activations.layers import parse_layers
from probes.activations.reader import reading, widths
from probes.activations.sites import find_sockets
from probes.errors import LabError
from sidecar.types import Site, TapPoint
from tests.tap.models import ARCHITECTURES, LAYERS, WIDTH, tiny

TEXTS = [[0, 5, 6, 7, 8, 9], [0, 5, 6], [0, 5, 6, 7, *range(20, 60)], [3]]
EVERYWHERE = [TapPoint(layer, site) for layer in range(LAYERS) for site in Site]
architectures = pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))


def alone(model: Any, ids: list[int]) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        states: tuple[torch.Tensor, ...] = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return states


@architectures
def test_residual_states_are_those_of_each_text_alone(architecture: str) -> None:
    model = tiny(architecture)
    with reading(model, [TapPoint(layer) for layer in range(LAYERS - 1)], 0) as reader:
        found = reader.read(TEXTS)
    for index, ids in enumerate(TEXTS):
        wanted = alone(model, ids)
        for layer in range(LAYERS - 1):
            np.testing.assert_allclose(found[TapPoint(layer).name][index], wanted[layer + 1][0].numpy(), atol=1e-5)


@architectures
def test_a_block_adds_its_attention_and_its_mlp_to_the_residual_stream(architecture: str) -> None:
    """Which is true of what is read at the three sites only if each is read where it should be."""
    model = tiny(architecture)
    with reading(model, EVERYWHERE, 0) as reader:
        found = reader.read(TEXTS)
    for layer in range(1, LAYERS):
        (socket,) = find_sockets(model, [TapPoint(layer, Site.ATTN_HEADS)])
        for index in range(len(TEXTS)):
            before, after, heads, mlp = (
                found[point.name][index]
                for point in (
                    TapPoint(layer - 1),
                    TapPoint(layer),
                    TapPoint(layer, Site.ATTN_HEADS),
                    TapPoint(layer, Site.MLP_OUT),
                )
            )
            with torch.inference_mode():
                attention = socket.module(torch.from_numpy(heads)).numpy()
            np.testing.assert_allclose(before + attention + mlp, after, atol=1e-5)


def test_the_last_block_is_read_before_the_final_norm() -> None:
    model = tiny()
    with reading(model, [TapPoint(LAYERS - 1)], 0) as reader:
        found = reader.read(TEXTS)[TapPoint(LAYERS - 1).name][0]
    with torch.inference_mode():
        normed = model.model.norm(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(normed, alone(model, TEXTS[0])[-1][0].numpy(), atol=1e-5)


def test_widths_are_measured_also_where_heads_are_wider_than_the_stream() -> None:
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=90,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    points = [TapPoint(1), TapPoint(1, Site.ATTN_HEADS), TapPoint(1, Site.MLP_OUT)]
    assert widths(model, points) == dict(zip((point.name for point in points), (32, 64, 32), strict=True))


def test_skipped_positions_are_left_out_but_never_a_texts_last() -> None:
    model = tiny()
    with reading(model, [TapPoint(1)], 3) as reader:
        found = reader.read(TEXTS)[TapPoint(1).name]
    assert [rows.shape for rows in found] == [(3, WIDTH), (1, WIDTH), (41, WIDTH), (1, WIDTH)]
    np.testing.assert_allclose(found[0], alone(model, TEXTS[0])[2][0, 3:].numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], alone(model, TEXTS[1])[2][0, -1:].numpy(), atol=1e-5)


def test_nothing_behind_the_last_tap_point_is_computed_and_the_model_is_left_as_it_was() -> None:
    model = tiny()
    ran: list[int] = []
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    before = alone(model, TEXTS[0])[-1]  # its own way to the hidden states leaves hooks behind
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    ran.clear()
    with reading(model, [TapPoint(0), TapPoint(2, Site.MLP_OUT)], 0) as reader:
        reader.read(TEXTS)
    assert ran == [0, 1]
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(alone(model, TEXTS[0])[-1], before)


def test_states_of_a_half_precision_model_are_float32() -> None:
    model = tiny().to(torch.bfloat16)
    with reading(model, [TapPoint(1)], 0) as reader:
        found = reader.read(TEXTS)[TapPoint(1).name][0]
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_blocks_and_parts_that_a_model_has_not_are_named() -> None:
    with pytest.raises(LabError, match=r"blocks\.9\.resid_post: the model's blocks are 0 to 3"):
        find_sockets(tiny(), [TapPoint(9)])
    model = tiny()
    del model.model.layers[1].mlp
    with pytest.raises(LabError, match=r"blocks\.1\.mlp_out: LlamaDecoderLayer has none of mlp, .*\(it has self_attn"):
        find_sockets(model, [TapPoint(1, Site.MLP_OUT)])
    with pytest.raises(LabError, match="not a decoder"):
        find_sockets(torch.nn.Linear(2, 2), [TapPoint(0)])


def test_a_tap_point_where_nothing_passes_is_named() -> None:
    model = tiny()
    model.model.layers[1].mlp.forward = None
    model.model.layers[1].forward = lambda states, **_: states
    with (
        reading(model, [TapPoint(1, Site.MLP_OUT)], 0) as reader,
        pytest.raises(LabError, match=r"blocks\.1\.mlp_out: nothing passes there"),
    ):
        reader.read(TEXTS)


@pytest.mark.parametrize(
    ("text", "depth", "wanted"),
    [
        ("8,14", 30, (8, 14)),
        ("4-6, 1", 30, (1, 4, 5, 6)),
        ("all", 3, (0, 1, 2)),
        ("", 30, (0, 7, 10, 14, 18, 21)),
        ("", 2, (0,)),
        ("", 1, (0,)),
    ],
)
def test_layers_are_read_as_they_are_written(text: str, depth: int, wanted: tuple[int, ...]) -> None:
    assert parse_layers(text, depth) == wanted


@pytest.mark.parametrize("text", ["x", "3-", "-3", "5-3", "3,,4", "30", "0-99999999999", "1.5"])
def test_layers_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(LabError, match="--layers"):
        parse_layers(text, 30)


@architectures
def test_a_shared_beginning_is_computed_once_and_changes_nothing(architecture: str) -> None:
    model = tiny(architecture)
    shared = [0, 11, 12, 13, 14]
    texts = [[*shared, 5], [*shared, *range(20, 60)], [*shared, 7, 8, 9]]
    points = [*EVERYWHERE[:-3], TapPoint(LAYERS - 1)]
    fed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: fed.append(inputs[0].shape[1]))
    with reading(model, points, 1) as reader:
        wanted = reader.read(texts)
        assert reader.share(shared, texts[0])
        fed.clear()
        for _ in range(2):  # the cache of the beginning is as it was
            found = reader.read(texts)
    assert fed == [40, 40]
    for name, of_texts in wanted.items():
        for one, other in zip(found[name], of_texts, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_more_skipped_positions_than_the_shared_beginning_has_are_left_out() -> None:
    model = tiny()
    texts = [[0, 1, 2, 3, 5], [0, 1, 2, 3, 6, 7, 8, 9, 10]]
    with reading(model, [TapPoint(1)], 6) as reader:
        wanted = reader.read(texts)[TapPoint(1).name]
        assert reader.share([0, 1, 2, 3], texts[0])
        found = reader.read(texts)[TapPoint(1).name]
    assert [rows.shape[0] for rows in found] == [1, 3]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_model_whose_cache_does_not_remember_all_shares_nothing() -> None:
    """Here: one whose first block forgets where in the text it is."""
    model = tiny()
    forward = model.model.layers[0].forward
    model.model.layers[0].forward = lambda states, **more: (
        forward(states, **{**more, "past_key_values": None}) * (states.shape[1])
    )
    with reading(model, [TapPoint(1)], 0) as reader:
        before = reader.read(TEXTS[:1])[TapPoint(1).name][0]
        assert not reader.share(TEXTS[0][:4], TEXTS[0])
        np.testing.assert_array_equal(reader.read(TEXTS[:1])[TapPoint(1).name][0], before)
