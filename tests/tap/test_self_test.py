"""Before the first request: every tap point gives states, or is said not to, and the model is as it was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from sidecar.tap.tensors.heard import Heard, Wanted
from sidecar.tap.transformers import attach
from sidecar.tap.transformers.made_up import NoTrialError, made_up
from sidecar.tap.trial import Outcome
from sidecar.types import Site, Stack, TapPoint
from tests.tap import kinds
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import PROMPTS, tapped
from tests.tap.models import ARCHITECTURES, LAYERS, tiny
from tests.tap.receiver import Receiver, control

NOBODY = "unix:/nowhere.sock"
MLP = TapPoint(1, Site.MLP_OUT)
BLOCKS = {"t5": (3, 3), "bart": (3, 2), "whisper": (3, 2), "llava": (4, 0), "qwen2_vl": (4, 0)}  # decoder, encoder


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1, MLP, 2)))


def unheard(module: Any) -> None:
    """From now on the module computes what it did and runs no hook, as one that a compiler or a fused kernel took over."""
    plain = type(module)
    module.__class__ = type("Fused", (plain,), {"__call__": plain.forward})


def outcomes(model: Any) -> dict[TapPoint, Outcome]:
    tap = attach(model, address=NOBODY)
    tap.detach(0.0)
    return {point: found.outcome for point, found in tap.self_test.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_come_at_every_site_of_every_block_of_a_decoder(architecture: str) -> None:
    every = [TapPoint(layer, site) for layer in range(LAYERS) for site in Site]
    assert outcomes(tiny(architecture)) == dict.fromkeys(every, Outcome.CAME)


@pytest.mark.parametrize("kind", BLOCKS)
def test_states_come_in_both_stacks_and_in_models_that_also_see(kind: str) -> None:
    found, (decoder, encoder) = outcomes(getattr(kinds, kind)()), BLOCKS[kind]
    assert set(found.values()) == {Outcome.CAME}
    stacks = [point.stack for point in found]
    assert (stacks.count(Stack.DECODER), stacks.count(Stack.ENCODER)) == (3 * decoder, 3 * encoder)


def test_a_part_that_runs_no_hook_is_refused_aloud_and_all_others_are_captured(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    plain = model(torch.tensor([PROMPTS[0]])).logits
    unheard(model.model.layers[1].mlp)
    with caplog.at_level(logging.INFO), tapped(model, receiver) as tap:
        assert torch.equal(model(torch.tensor([PROMPTS[0]])).logits, plain)
        assert {point for point, one in tap.self_test.items() if one.outcome is Outcome.REFUSED} == {MLP}
        assert tap.points == (TapPoint(1), TapPoint(2))
    assert [[t.tap_point.layer for t in batch.tensors] for batch in receiver.batches] == [[1, 2]]
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (7, {})  # expected there and not seen: blind
    (said,) = [one.message for one in caplog.records if one.levelno == logging.ERROR]
    assert said.startswith(
        "tap_point_not_captured tap_point=blocks.1.mlp_out: refused by the self-test: no states came"
    )
    assert "states_come=11 refused=1 not_tested=0" in caplog.text
    assert caplog.text.count(": states come") == 2


def test_states_that_are_not_finite_are_refused_from_the_block_on_that_makes_them() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    found = outcomes(model)
    first = TapPoint(2, Site.MLP_OUT)
    heads = TapPoint(2, Site.ATTN_HEADS)  # before it, in the same block
    refused = {point for point, one in found.items() if one is Outcome.REFUSED}
    assert refused == {first, TapPoint(2), *(TapPoint(3, site) for site in Site)}
    assert found[heads] is Outcome.CAME


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (torch.zeros(1, 4, 8), ""),
        (torch.zeros(4, 8, dtype=torch.bfloat16), ""),
        (torch.zeros(1, 4, 9), "rows of width 9, where the model's are 8 wide"),
        (torch.zeros(2, 4, 8), "8 rows for 4 tokens"),
        (torch.full((4, 8), torch.inf), "states that are not finite"),
        (torch.zeros(4, 8, dtype=torch.int64), "what came is no rows of numbers"),
        (torch.zeros(8), "what came is no rows of numbers"),
        (None, "what came is no rows of numbers"),
    ],
)
def test_states_of_another_shape_than_the_models_are_refused(states: Any, why: str) -> None:
    heard = Heard({MLP: Wanted(4, 8)})
    heard.take(MLP, states)
    assert heard.findings()[MLP] == (Outcome.REFUSED if why else Outcome.CAME, why)


def test_a_width_that_only_the_model_knows_is_taken_as_it_comes() -> None:
    heard = Heard({MLP: Wanted(4, 0)})
    heard.take(MLP, torch.zeros(4, 77))
    assert heard.findings()[MLP].outcome is Outcome.CAME


def test_a_denoising_model_is_not_tested_and_says_so_of_each_tap_point_that_is_asked_for(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    model = kinds.diffusion_transformer()
    with caplog.at_level(logging.INFO), tapped(model, receiver, layers=[1]) as tap:
        tap._hooks.refresh()
        assert tap.points == (TapPoint(1),)
        assert {one.outcome for one in tap.self_test.values()} == {Outcome.NOT_TESTED}
    told = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    why = "a model of hidden_states, which nobody can make up for every model"
    assert told == [
        f"self_test not run: {why}; whether states come is seen with the first request",
        f"self_test tap_point=blocks.1.resid_post: not tested: {why}",
    ]
    assert "states_come=0 refused=0 not_tested=9" in caplog.text


def test_a_model_that_fails_on_what_is_made_up_is_not_tested_and_tapped_all_the_same(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()

    def picky(_model: Any, args: tuple[Any, ...]) -> None:
        if not args:
            raise RuntimeError("wants its tokens by position")

    model.register_forward_pre_hook(picky)
    with tapped(model, receiver) as tap:
        assert {one.why for one in tap.self_test.values()} == {"the model failed on made-up tokens: RuntimeError"}
        model(torch.tensor([PROMPTS[0]]))
    assert [len(batch.tensors) for batch in receiver.batches] == [3]
    assert "self_test not run" in caplog.text
    assert "wants its tokens by position" in caplog.text  # with the traceback


def test_one_of_several_processes_does_not_run_the_model_alone() -> None:
    """It would wait in the first collective for the others, which have not attached, or are past it."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        model = tiny()
        ran: list[Any] = []
        model.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
        assert set(outcomes(model).values()) == {Outcome.NOT_TESTED}
        assert ran == []
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [lambda: tiny("gpt2"), kinds.t5, kinds.whisper, kinds.qwen2_vl])
def test_the_model_its_random_numbers_and_its_mode_are_as_they_were(make: Callable[[], Any]) -> None:
    """In training, where dropout draws, with one part that draws in any mode, and with the mode of another set apart."""
    model = make().train()
    model.register_forward_pre_hook(lambda *_: torch.rand(1) and None)
    next(iter(model.children())).eval()
    twin = copy.deepcopy(model)
    before = [{**vars(one), **one._buffers} for one in model.modules()]
    state = torch.get_rng_state()
    assert Outcome.CAME in outcomes(model).values()
    assert torch.equal(torch.get_rng_state(), state)
    for module, had in zip(model.modules(), before, strict=True):
        now = {**vars(module), **module._buffers}
        assert now.keys() == had.keys()
        assert all(now[name] is had[name] for name in had)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    given = made_up(model).arguments
    torch.set_rng_state(state)
    after = model(**given)[0]
    torch.set_rng_state(state)
    assert torch.equal(after, twin(**given)[0])


def test_what_is_made_up_is_nobodys_and_costs_nobody_anything(receiver: Receiver) -> None:
    with tapped(tiny(), receiver, measure_cost=True) as tap:
        assert tap.cost().steps == 0
    assert (receiver.reports[-1].tokens_computed, receiver.unseen, receiver.batches) == (0, {}, [])


def test_a_compiled_model_is_tried_as_it_is_written_and_nothing_is_compiled_for_it() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = tiny()
    model.compile(backend=backend)
    assert set(outcomes(model).values()) == {Outcome.CAME}
    assert compiled == []
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]]))
    assert compiled
    torch.compiler.reset()


def test_no_id_that_means_something_is_made_up() -> None:
    model = kinds.llava()
    model.config.image_token_id, model.config.text_config.bos_token_id = 3, 4
    assert made_up(model).arguments["input_ids"].tolist() == [[0, 5, 6, 7]]
    model.resize_token_embeddings(6)
    with pytest.raises(NoTrialError, match="vocabulary"):
        made_up(model)
