"""Going on from a tap point gives what the whole model gives, on any decoder, with edits and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes.activations.sites import find_sockets
from probes.causal.acting import acting_after, acting_at
from probes.causal.edits import Edits, removed, replaced, shifted
from probes.causal.resume import Resumed
from probes.errors import LabError
from probes.stages import Places
from sidecar.types import Site, TapPoint
from tests.tap.models import LAYERS, WIDTH, tiny

ANSWERS = ([5, 6], [7])
SKIP = 1
SHARED = [[3, 4, 9, 9, 10, 20], [3, 4, 11, 30], [3, 4, 12, 13, 14, 15, 16, 9]]
UNLIKE = [[8, 4, 9, 9, 10], [3, 4, 11], [5, 4, 12, 13, 14, 15]]
POINTS = [TapPoint(0), TapPoint(1), TapPoint(LAYERS - 1), TapPoint(0, Site.MLP_OUT), TapPoint(2, Site.ATTN_HEADS)]
MODELS = ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral"]


def begun(model: Any, where: TapPoint, prompts: list[list[int]], skip: int = SKIP, also: Places = ()) -> Resumed:
    resumed = Resumed(model, (where, *also), ANSWERS, skip)
    resumed.begin(prompts, lambda _count: None)
    return resumed


def alone(model: Any, prompt: list[int]) -> float:
    """Log-odds by the whole model, of one prompt, without padding, cache or skipping."""
    with torch.inference_mode():
        last = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].double()
    return float(torch.logsumexp(last[ANSWERS[0]], 0) - torch.logsumexp(last[ANSWERS[1]], 0))


def edited_alone(model: Any, where: TapPoint, edits: Edits, prompts: list[list[int]], also: Places = ()) -> list[float]:
    """The same with edits at work in the whole model."""
    from sidecar.tap.transformers.blocks import find_blocks

    sockets = find_sockets(model, [where, *also])
    blocks: Any = find_blocks(model)
    found = []
    for number, prompt in enumerate(prompts):
        hooks = [
            acting_at(socket, lambda states, edit=edit, number=number: edit(states, (number,), 0))
            for socket, edit in zip(sockets, edits.here, strict=True)
        ]
        for layer, edit in edits.later.items():
            hooks.append(
                acting_after(blocks[layer], lambda states, edit=edit, number=number: edit(states, (number,), 0))
            )
        for hook in hooks:
            hook.__enter__()
        found.append(alone(model, prompt))
        for hook in reversed(hooks):
            hook.__exit__(None, None, None)
    return found


def a_basis(rank: int = 2) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, rank)))[0]


@pytest.mark.parametrize("prompts", [SHARED, UNLIKE], ids=["alike", "unlike"])
@pytest.mark.parametrize("architecture", MODELS)
def test_going_on_from_a_block_gives_what_the_whole_model_gives(architecture: str, prompts: list[list[int]]) -> None:
    model = tiny(architecture)
    whole = [alone(model, prompt) for prompt in prompts]
    resumed = begun(model, TapPoint(1), prompts)
    assert resumed.log_odds == pytest.approx(whole, abs=1e-5)
    assert resumed.run(None) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("where", POINTS, ids=lambda where: where.name)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_an_edit_does_the_same_as_in_the_whole_model(architecture: str, where: TapPoint) -> None:
    model = tiny(architecture)
    resumed = begun(model, where, SHARED)
    basis = a_basis()
    centre = np.full(WIDTH, 0.1)
    later = {layer: removed(basis, basis, mean, skip=SKIP) for layer, mean in resumed.later_means.items()}
    edits = Edits((removed(basis, basis, centre, skip=SKIP),), later)
    found = resumed.run(edits)
    assert found == pytest.approx(edited_alone(model, where, edits, SHARED), abs=1e-5)
    assert np.abs(found - resumed.log_odds).max() > 1e-4


SEVERAL = {
    "residual stream": ((TapPoint(0), TapPoint(2)), {1: 0, 3: 1}),
    "named from the top": ((TapPoint(2), TapPoint(0)), {1: 1, 3: 0}),
    "one block": ((TapPoint(1, Site.MLP_OUT), TapPoint(1)), {2: 1, 3: 1}),
    "heads": ((TapPoint(1, Site.ATTN_HEADS), TapPoint(2)), {3: 1}),
}


@pytest.mark.parametrize(("everywhere", "later"), SEVERAL.values(), ids=SEVERAL.keys())
@pytest.mark.parametrize("prompts", [SHARED, UNLIKE], ids=["alike", "unlike"])
def test_edits_at_several_tap_points_do_the_same_as_in_the_whole_model(
    everywhere: Places, later: dict[int, int], prompts: list[list[int]]
) -> None:
    model = tiny()
    where, *also = everywhere
    resumed = begun(model, where, prompts, also=tuple(also))
    assert resumed.later == later
    for number, point in enumerate(everywhere):
        alike = begun(model, point, prompts).states()
        assert all(np.allclose(*both, atol=1e-5) for both in zip(resumed.states(number), alike, strict=True))
    basis = a_basis()
    first, second = (removed(basis, basis, np.full(WIDTH, at), skip=SKIP) for at in (0.1, -0.2))
    after = {layer: removed(basis, basis, mean, skip=SKIP) for layer, mean in resumed.later_means.items()}
    found = [
        resumed.run(edits)
        for edits in (Edits((first, second), after), Edits((first, shifted(np.zeros(WIDTH), skip=SKIP))))
    ]
    assert found[0] == pytest.approx(
        edited_alone(model, where, Edits((first, second), after), prompts, tuple(also)), abs=1e-5
    )
    assert np.abs(found[0] - found[1]).max() > 1e-4


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_skipped_positions_stay_as_they_are_also_where_prompts_begin_alike(skip: int) -> None:
    model = tiny("qwen2")
    resumed = begun(model, TapPoint(1), SHARED, skip)
    edits = Edits((shifted(np.full(WIDTH, 0.5), skip=skip),))
    assert resumed.run(edits) == pytest.approx(edited_alone(model, TapPoint(1), edits, SHARED), abs=1e-5)
    assert [len(states) for states in resumed.states()] == [len(prompt) - skip for prompt in SHARED]


def test_coordinates_are_replaced_prompt_by_prompt() -> None:
    model = tiny()
    resumed = begun(model, TapPoint(2), SHARED)
    basis, states = a_basis(), resumed.states()
    own = {number: rows @ basis for number, rows in enumerate(states)}
    assert resumed.run(Edits((replaced(basis, own, skip=SKIP),))) == pytest.approx(resumed.log_odds, abs=1e-5)
    other = {0: own[0] + 1.0}
    found = resumed.run(Edits((replaced(basis, other, skip=SKIP),)))
    assert found[1:] == pytest.approx(resumed.log_odds[1:], abs=1e-5)
    assert abs(found[0] - resumed.log_odds[0]) > 1e-4


def test_means_of_later_blocks_are_those_of_all_prompts_positions() -> None:
    model = tiny()
    resumed = begun(model, TapPoint(0), SHARED)
    rows = []
    for prompt in SHARED:
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([prompt]), use_cache=False, output_hidden_states=True)
        rows.append(out.hidden_states[2][0, SKIP:].double().numpy())
    assert sorted(resumed.later_means) == [1, 2, 3]
    assert resumed.later_means[1] == pytest.approx(np.concatenate(rows).mean(axis=0), abs=1e-5)


def test_the_model_is_left_as_it_was_found() -> None:
    model = tiny()
    resumed = begun(model, TapPoint(1), SHARED)
    resumed.run(Edits((shifted(np.ones(WIDTH), skip=SKIP),)))
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_edit_that_breaks_the_model_is_an_error_and_leaves_it_whole() -> None:
    model = tiny()
    resumed = begun(model, TapPoint(1), SHARED)
    with pytest.raises(LabError, match=r"blocks\.1\.resid_post .* not finite"):
        resumed.run(Edits((shifted(np.full(WIDTH, np.nan), skip=SKIP),)))
    assert resumed.run(None) == pytest.approx(resumed.log_odds, abs=1e-5)


def test_a_model_that_cannot_be_resumed_is_refused() -> None:
    """One whose every run is another: here by dropout."""
    model = tiny()
    model.train()
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.9
    with pytest.raises(LabError, match="does not give what the whole model gives"):
        begun(model, TapPoint(1), SHARED)


def test_a_model_of_less_precision_gets_its_states_back_in_its_own() -> None:
    model = tiny().to(torch.bfloat16)
    resumed = Resumed(model, (TapPoint(1),), ANSWERS, SKIP)
    resumed.begin(UNLIKE[:1], lambda _count: None)
    found = resumed.run(Edits((shifted(np.full(WIDTH, 5.0), skip=SKIP),)))
    assert np.isfinite(found).all()
    assert found[0] != resumed.log_odds[0]
