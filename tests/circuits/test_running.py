"""What is replaced by hooks is what other arithmetic gives: weights without these columns, or W_O times the difference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from probes.activations.sites import find_sockets
from probes.circuits.nodes import Node, by_point
from probes.circuits.pairs import Contrast
from probes.circuits.replacing import Ablation, ablation, one_each, replacing
from probes.circuits.running import Below, Decoder, Group, groups
from probes.circuits.universe import nodes_of
from sidecar.types import Site, TapPoint
from tests.tap.models import tiny

architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neox", "mixtral"])
HEAD, OTHER, MLP = (Node.parse(name) for name in ("blocks.1.attn_heads.2", "blocks.2.attn_heads.0", "blocks.1.mlp_out"))


def contrasts(lengths: tuple[int, ...] = (9, 6, 12), seed: int = 0) -> tuple[Contrast, ...]:
    draws = np.random.default_rng(seed)
    found = []
    for length in lengths:
        clean = draws.integers(5, 90, length)
        corrupt = clean.copy()
        corrupt[length // 3] = 99
        found.append(Contrast(tuple(clean.tolist()), tuple(corrupt.tolist()), (3, 4), (7,)))
    return tuple(found)


def one_group(decoder: Decoder) -> Group:
    (group,) = groups(contrasts())
    return group


def weight(model: Any, point: TapPoint) -> torch.Tensor:
    """The heads' output projection as [out, in], a view of the model's own; GPT-2 keeps it the other way round."""
    (socket,) = find_sockets(model, [point])
    own = socket.module.weight.data
    return own.T if type(socket.module).__name__ == "Conv1D" else own


def logits(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double()


def metric(found: torch.Tensor) -> float:
    return float(torch.logsumexp(found[[3, 4]], 0) - found[7])


@architectures
def test_a_metric_is_that_of_each_prompt_alone(architecture: str) -> None:
    model = tiny(architecture)
    decoder, pairs = Decoder(model), contrasts()
    (group,) = groups(pairs)
    found = dict(zip(group.pairs, decoder.metrics(group.clean).tolist(), strict=True))
    for number, pair in enumerate(pairs):
        assert found[number] == pytest.approx(metric(logits(model, pair.clean)), abs=1e-5)


@architectures
def test_a_zeroed_head_is_a_model_without_its_columns_of_the_output_projection(architecture: str) -> None:
    model = tiny(architecture)
    decoder = Decoder(model)
    group = one_group(decoder)
    values = ablation(Ablation.ZERO, decoder, [HEAD.where, OTHER.where], group.corrupt)
    found = decoder.metrics(group.clean, replacing([HEAD, OTHER], values, decoder.heads))
    without = copy.deepcopy(model)
    weight(without, HEAD.where)[:, 16:24] = 0
    weight(without, OTHER.where)[:, 0:8] = 0
    torch.testing.assert_close(found, Decoder(without).metrics(group.clean), atol=1e-5, rtol=0)
    assert float((found - decoder.metrics(group.clean)).abs().max()) > 1e-4


@architectures
def test_a_mean_head_adds_the_projection_of_its_mean(architecture: str) -> None:
    model = tiny(architecture)
    decoder = Decoder(model)
    group = one_group(decoder)
    values = ablation(Ablation.MEAN, decoder, [HEAD.where], group.corrupt)
    found = decoder.metrics(group.clean, replacing([HEAD], values, decoder.heads))
    rows = torch.cat(
        [decoder.read(_alone(group, row), [HEAD.where])[1][HEAD.where][0] for row in range(len(group.pairs))]
    )
    starts = np.cumsum([0, *(int(end) + 1 for end in group.corrupt.ends)])[:-1]
    later = torch.ones(len(rows), dtype=torch.bool)
    later[torch.from_numpy(starts)] = False
    added = torch.zeros(group.clean.ids.shape[1], rows.shape[1])
    added[0], added[1:] = rows[~later].mean(0), rows[later].mean(0)
    columns = weight(model, HEAD.where)[:, 16:24].clone()
    without = copy.deepcopy(model)
    weight(without, HEAD.where)[:, 16:24] = 0
    (socket,) = find_sockets(without, [HEAD.where])
    socket.module.register_forward_hook(lambda _module, _inputs, out: out + added[:, 16:24] @ columns.T)
    torch.testing.assert_close(found, Decoder(without).metrics(group.clean), atol=1e-5, rtol=0)


@architectures
def test_a_patched_head_moves_the_attention_by_its_columns_times_the_difference(architecture: str) -> None:
    model = tiny(architecture)
    decoder = Decoder(model)
    group = one_group(decoder)
    values = ablation(Ablation.RESAMPLE, decoder, [HEAD.where], group.corrupt)
    found = decoder.metrics(group.clean, replacing([HEAD], values, decoder.heads))
    own = decoder.read(group.clean, [HEAD.where])[1][HEAD.where]
    moved = (values[HEAD.where] - own)[..., 16:24] @ weight(model, HEAD.where)[:, 16:24].T
    (socket,) = find_sockets(model, [HEAD.where])
    handle = socket.module.register_forward_hook(lambda _module, _inputs, out: out + moved)
    wanted = decoder.metrics(group.clean)
    handle.remove()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert float((found - decoder.metrics(group.clean)).abs().max()) > 1e-6


@architectures
def test_a_zeroed_mlp_is_a_block_that_adds_nothing_after_its_attention(architecture: str) -> None:
    model = tiny(architecture)
    decoder = Decoder(model)
    group = one_group(decoder)
    values = ablation(Ablation.ZERO, decoder, [MLP.where], group.clean)
    found = decoder.metrics(group.clean, replacing([MLP], values, decoder.heads))
    without = copy.deepcopy(model)
    (socket,) = find_sockets(without, [MLP.where])
    for name, parameter in socket.module.named_parameters():
        if any(part in name for part in ("down_proj", "c_proj", "dense_4h_to_h", "w2")):
            parameter.data.zero_()
    torch.testing.assert_close(found, Decoder(without).metrics(group.clean), atol=1e-5, rtol=0)


def test_only_the_positions_that_are_named_are_replaced() -> None:
    decoder = Decoder(tiny())
    group = one_group(decoder)
    values = ablation(Ablation.RESAMPLE, decoder, [HEAD.where], group.corrupt)
    chosen = torch.zeros_like(group.clean.ids, dtype=torch.bool)
    chosen[:, 2:5] = True
    seen: list[torch.Tensor] = []
    (act,) = replacing([HEAD], values, decoder.heads, chosen).values()

    def looking(states: torch.Tensor) -> torch.Tensor:
        seen.extend((states.clone(), act(states)))
        return seen[-1]

    decoder.metrics(group.clean, {HEAD.where: looking})
    before, after = seen
    assert torch.equal(after[:, 2:5, 16:24], values[HEAD.where][:, 2:5, 16:24])
    after[:, 2:5, 16:24] = before[:, 2:5, 16:24]
    assert torch.equal(after, before)


@architectures
def test_going_on_from_a_block_gives_what_the_whole_model_gives(architecture: str) -> None:
    decoder = Decoder(tiny(architecture))
    group = one_group(decoder)
    assert decoder.goes_on(group.clean)
    nodes = by_point(nodes_of(decoder.model))[TapPoint(2, Site.ATTN_HEADS)]
    values = ablation(Ablation.RESAMPLE, decoder, [nodes[0].where], group.corrupt)
    below = decoder.read(group.clean, [TapPoint(1)])[1][TapPoint(1)].repeat(len(nodes), 1, 1)
    acts = {nodes[0].where: one_each(nodes, values[nodes[0].where], decoder.heads)}
    together = decoder.metrics(group.clean.repeated(len(nodes)), acts, Below(2, below)).reshape(len(nodes), -1)
    for node, found in zip(nodes, together, strict=True):
        alone = decoder.metrics(group.clean, replacing([node], values, decoder.heads))
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_a_run_leaves_no_hook_and_no_block_changed_even_if_it_fails() -> None:
    model = tiny()
    decoder = Decoder(model)
    group = one_group(decoder)
    before = decoder.metrics(group.clean)

    def failing(_states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("here")

    below = decoder.read(group.clean, [TapPoint(0)])[1][TapPoint(0)]
    with pytest.raises(RuntimeError, match="here"):
        decoder.metrics(group.clean, {HEAD.where: failing}, Below(1, below))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(block) for block in model.model.layers)
    assert torch.equal(decoder.metrics(group.clean), before)


def test_groups_hold_every_pair_once_within_their_limit() -> None:
    pairs = contrasts((9, 6, 12, 30, 5, 9))
    made = list(groups(pairs, limit=30))
    assert sorted(number for group in made for number in group.pairs) == list(range(6))
    assert all(group.clean.ids.numel() <= 30 for group in made)
    for group in made:
        for row, number in enumerate(group.pairs):
            assert tuple(group.corrupt.ids[row, : int(group.corrupt.ends[row]) + 1].tolist()) == pairs[number].corrupt


def _alone(group: Group, row: int) -> Any:
    length = int(group.corrupt.ends[row]) + 1
    chosen = group.corrupt.chosen([row])
    return type(chosen)(chosen.ids[:, :length], chosen.ends, chosen.right, chosen.wrong)
