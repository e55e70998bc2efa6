"""A denoising loop: one row a request and timestep, whoever runs the loop and whichever way it is told the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sidecar.types import Phase, Site, TapPoint, UnseenReason
from tests.tap import kinds
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import tapped
from tests.tap.models import PAD, VOCABULARY, WIDTH, library
from tests.tap.receiver import Receiver, control

LAYER = 1
HEADS, MLP = TapPoint(LAYER, Site.ATTN_HEADS), TapPoint(LAYER, Site.MLP_OUT)
NAMES = ["a", "b"]
FRAMES = 12
Rows = list[npt.NDArray[np.float32]]


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((LAYER,)))


@pytest.fixture(scope="module")
def model() -> Any:
    return kinds.diffusion_transformer()


def conditions() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "condition_vector": torch.randn(2, 20, kinds.MEL_BINS, generator=random),
        "speaker_embedding": torch.randn(2, FRAMES, 8, generator=random),
        "quantized_code": torch.randint(0, 50, (2, FRAMES // 2), generator=random),
    }


def denoise(model: Any, times: list[float | torch.Tensor], *, guided: bool = False) -> torch.Tensor:
    """A loop written by hand: a little of what the model says is added at every time."""
    state = torch.randn(2, FRAMES, kinds.MEL_BINS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for time in times:
            made = model(hidden_states=state, time_step=torch.as_tensor(time), apply_cfg=guided, **conditions())
            state = state + 0.1 * made[:2]
    return state


@contextmanager
def means(module: Any, *, inputs: bool = False) -> Iterator[Rows]:
    """The mean over the positions [rows, D] of every call, by a hook of the test's own."""
    seen: Rows = []
    if inputs:
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].mean(1).numpy()))
    else:
        handle = module.register_forward_hook(lambda _m, _a, output: seen.append(output.mean(1).numpy()))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.shows("transformers", "timesteps")
def test_every_timestep_is_a_row_of_every_request_at_the_position_of_its_time(model: Any, receiver: Receiver) -> None:
    times = [1.0, 0.75, 0.5, 0.25]
    plain = denoise(model, times)
    with tapped(model, receiver) as tap, means(model.transformer_blocks[LAYER]) as seen:
        with tap.requests(NAMES, route="speech"), tap.timesteps("time_step", scale=1000):
            assert torch.equal(denoise(model, times), plain)
        assert tap.errors() == {}
    for row, name in enumerate(NAMES):
        found = receiver.rows(LAYER)[name]
        assert list(found) == [1000, 750, 500, 250]
        for position, wanted in zip(found, seen, strict=True):
            assert np.array_equal(found[position], wanted[row])
        assert {(one.phase, one.route, one.prompt_tokens) for one in receiver.segments(name)} == {
            (Phase.TIMESTEP, "speech", 0)
        }
    report = receiver.reports[-1]
    assert (report.tokens_computed, report.requests, receiver.unseen) == (8, 2, {})
    assert sorted(receiver.finished) == NAMES


def test_heads_and_mlps_of_a_timestep_are_averaged_alike(model: Any, make_receiver: MakeReceiver) -> None:
    receiver, block = make_receiver(control((HEADS, MLP))), model.transformer_blocks[LAYER]
    with tapped(model, receiver) as tap, means(block.attn.to_out[0], inputs=True) as heads, means(block.ff) as mlps:
        with tap.requests(NAMES), tap.timesteps("time_step", scale=1000):
            denoise(model, [0.5])
        assert (tap.points, tap.errors()) == ((HEADS, MLP), {})
    for point, (wanted,) in ((HEADS, heads), (MLP, mlps)):
        assert np.array_equal([receiver.rows(point)[name][500] for name in NAMES], wanted)


def test_a_loop_that_the_model_runs_itself_is_followed(model: Any, receiver: Receiver) -> None:
    """Its solver asks several times a step; at a time that comes again nothing new is captured, and it is said so."""
    asked: list[float] = []
    told = conditions()
    handle = model.register_forward_pre_hook(
        lambda _m, _a, kwargs: asked.append(1000 * float(kwargs["time_step"])), with_kwargs=True
    )
    with tapped(model, receiver) as tap, tap.requests(NAMES), tap.timesteps("time_step", scale=1000):
        model.sample(
            told["speaker_embedding"][:, 0],
            told["condition_vector"],
            told["quantized_code"],
            num_steps=4,
            guidance_scale=0,
        )
        assert tap.errors() == {}
    handle.remove()
    times = [round(one) for one in asked]
    repeated = sum(then == now for then, now in pairwise(times))
    assert repeated > 0
    segments = receiver.segments("a")
    assert len(segments) == len(times) - repeated
    assert receiver.unseen == {UnseenReason.SAMPLING: 2 * repeated}
    assert receiver.reports[-1].tokens_computed == 2 * len(times)


def test_rows_may_stand_at_times_of_their_own(model: Any, receiver: Receiver) -> None:
    with tapped(model, receiver) as tap, tap.requests(NAMES), tap.timesteps("time_step", scale=1000):
        denoise(model, [torch.tensor([0.9, 0.1]), torch.tensor([0.8, 0.2])])
    assert {name: list(rows) for name, rows in receiver.rows(LAYER).items()} == {"a": [900, 800], "b": [100, 200]}


def test_guided_rows_are_named_as_the_blocks_see_them(model: Any, receiver: Receiver) -> None:
    names = ["a", "b", "a/null", "b/null"]
    with tapped(model, receiver) as tap, means(model.transformer_blocks[LAYER]) as seen:
        with tap.requests(names), tap.timesteps("time_step", scale=1000):
            denoise(model, [0.5], guided=True)
        assert tap.errors() == {}
    assert np.array_equal([receiver.rows(LAYER)[name][500] for name in names], seen[0])


def test_other_rows_than_were_named_are_counted_and_not_captured(model: Any, receiver: Receiver) -> None:
    """Half of a guided batch would otherwise be taken for all of it."""
    plain = denoise(model, [0.5], guided=True)
    with tapped(model, receiver) as tap, tap.requests(NAMES), tap.timesteps("time_step", scale=1000):
        assert torch.equal(denoise(model, [0.5], guided=True), plain)
        assert tap.errors() == {
            "a timestep whose states are not [rows, N, D], of as many rows as are named": 1,
        }
    assert receiver.batches == []
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: 2}


@pytest.mark.parametrize(
    ("names", "at", "scale", "reason"),
    [
        ([], "time_step", 1000.0, "timesteps of rows that nobody has named: open tap.requests around the loop"),
        (NAMES, "sigma", 1.0, "a call without sigma"),
        (NAMES, "time_step", -1.0, "a timestep that is no position: scale it to whole numbers from 0 on"),
        (NAMES, "time_step", float("inf"), "a timestep that is no position: scale it to whole numbers from 0 on"),
        (NAMES, "condition_vector", 1.0, "timesteps of another number of rows than are named"),
    ],
)
def test_a_time_that_cannot_be_told_costs_the_rows_and_not_the_model(
    names: list[str], at: str, scale: float, reason: str, model: Any, receiver: Receiver
) -> None:
    plain = denoise(model, [0.5])
    with tapped(model, receiver) as tap, tap.requests(names), tap.timesteps(at, scale=scale):
        assert torch.equal(denoise(model, [0.5]), plain)
        assert tap.errors() == {reason: 1}
    assert receiver.batches == []
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: 2}


def test_any_transformer_is_followed_if_the_caller_says_the_time(receiver: Receiver) -> None:
    """A text encoder that refines embeddings: it knows no time by itself."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    encoder = library().BertModel(library().BertConfig(**sizes, vocab_size=VOCABULARY, pad_token_id=PAD)).eval()
    state = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(4))
    with tapped(encoder, receiver) as tap, torch.no_grad(), means(encoder.encoder.layer[LAYER]) as seen:
        with tap.requests(NAMES):
            for step in (2, 1, 0):
                with tap.timesteps(step):
                    state = state - 0.1 * encoder(inputs_embeds=state).last_hidden_state
        assert tap.errors() == {}
    found = receiver.rows(LAYER)["b"]
    assert list(found) == [2, 1, 0]
    assert all(np.array_equal(found[step], seen[2 - step][1]) for step in found)


def test_after_the_loop_rows_are_tokens_again(receiver: Receiver) -> None:
    from tests.tap.models import tiny

    decoder = tiny()
    ids = torch.tensor([[5, 6, 7]])
    with tapped(decoder, receiver) as tap, torch.no_grad():
        with tap.requests(["a"]), tap.timesteps(7):
            decoder(ids)
        with tap.requests(["b"]):
            decoder(ids)
    assert {name: list(rows) for name, rows in receiver.rows(LAYER).items()} == {"a": [7], "b": [0, 1, 2]}
