"""Prompts with images and the like: every row is the model's own state, and labelled are those at which the model put them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.step import RequestInfo, StepSegment
from sidecar.types import MediaSpan, Medium, Phase
from tests.tap import kinds
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import alone, tapped, worst_difference
from tests.tap.models import PAD, library, tiny
from tests.tap.receiver import Receiver, control

IMAGE, VIDEO = ingest_pb2.MEDIUM_IMAGE, ingest_pb2.MEDIUM_VIDEO
PICTURE = [kinds.IMAGE] * kinds.PATCHES
NAMES = ["a", "b"]
TOLERANCE = 1e-6  # as in test_generate


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1,)))


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def padded(*texts: list[int]) -> dict[str, torch.Tensor]:
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def media(receiver: Receiver, name: str) -> list[list[tuple[int, int, int]]]:
    return [segment.media for segment in receiver.segments(name)]


@pytest.mark.shows("transformers", "images in the prompt")
def test_every_row_is_the_models_own_and_pictures_are_labelled_in_the_prompt_and_nowhere_else(
    receiver: Receiver,
) -> None:
    model, prompts = kinds.llava(), ([5, 6, *PICTURE, 7, *PICTURE, 8], [9, *PICTURE, 10])
    inputs = {**padded(*prompts), "pixel_values": pictures(3)}
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    plain = model.generate(**inputs, **settings)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        assert torch.equal(model.generate(**inputs, **settings), plain)
        assert tap.errors() == {}
    assert media(receiver, "a") == [[(IMAGE, 2, 4), (IMAGE, 7, 4)], [], [], []]
    assert media(receiver, "b") == [[(IMAGE, 1, 4)], [], [], []]
    assert [one.phase for one in receiver.segments("b")] == [Phase.PREFILL] + [Phase.DECODE] * 3
    width, rows = inputs["input_ids"].shape[1], receiver.rows(1)
    for row, (name, seen) in enumerate(zip(NAMES, (pictures(3)[:2], pictures(3)[2:]), strict=True)):
        sequence = prompts[row] + plain[row, width:-1].tolist()
        assert worst_difference(rows[name], alone(model, sequence, 1, pixel_values=seen)[0]) < TOLERANCE


def test_a_labelled_row_is_the_state_of_a_piece_of_the_picture(receiver: Receiver) -> None:
    """Another picture moves it; what stands before the picture stays as it was."""
    model, ids = kinds.llava(), torch.tensor([[5, 6, *PICTURE, 7]])
    with tapped(model, receiver) as tap, torch.no_grad():
        for name, picture in zip(NAMES, pictures(2), strict=True):
            with tap.requests([name]):
                model(input_ids=ids, pixel_values=picture[None])
    a, b = (receiver.rows(1)[name] for name in NAMES)
    ((span,),) = media(receiver, "a")
    assert span == (IMAGE, 2, 4)
    moved = [position for position in a if np.abs(a[position] - b[position]).max() > TOLERANCE]
    assert moved == [2, 3, 4, 5, 6]  # and the text behind it, which has looked at it


@pytest.mark.shows("transformers", "images in the prompt")
def test_every_row_is_the_models_own_and_pictures_and_videos_are_told_apart(receiver: Receiver) -> None:
    """Of a model that counts positions of pictures in three dimensions; the tap counts tokens."""
    model = kinds.qwen2_vl()
    ids = torch.tensor([[5, *PICTURE, 7, *[kinds.VIDEO] * 4, 8]])
    patches = torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(6))
    grid = torch.tensor([[1, 4, 4]])
    seen = {"pixel_values": patches, "image_grid_thw": grid, "pixel_values_videos": patches, "video_grid_thw": grid}
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        output = model.generate(input_ids=ids, mm_token_type_ids=kinds_of(ids), **seen, **settings)
        assert tap.errors() == {}
    assert media(receiver, "a")[0] == [(IMAGE, 1, 4), (VIDEO, 6, 4)]
    fed = output[:, :-1]
    wanted = alone(model, fed[0].tolist(), 1, mm_token_type_ids=kinds_of(fed), **seen)[0]
    assert worst_difference(receiver.rows(1)["a"], wanted) < TOLERANCE


def kinds_of(ids: torch.Tensor) -> torch.Tensor:
    """0 is text, 1 a picture, 2 a video."""
    return (ids == kinds.IMAGE).int() + 2 * (ids == kinds.VIDEO).int()


def test_a_prompt_that_comes_in_pieces_is_labelled_once(receiver: Receiver) -> None:
    model = kinds.llava()
    ids = torch.tensor([[5, *PICTURE, 7, 8]])
    cache = library().DynamicCache(config=model.config.get_text_config(decoder=True))
    with tapped(model, receiver) as tap, tap.requests(["a"]), torch.no_grad():
        model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True, pixel_values=None)
        model(input_ids=ids[:, 3:], past_key_values=cache, use_cache=True, pixel_values=None)
    assert media(receiver, "a") == [[(IMAGE, 1, 2)], [(IMAGE, 3, 2)]]


def test_without_a_cache_a_picture_is_labelled_once(receiver: Receiver) -> None:
    model = kinds.llava()
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        model.generate(
            input_ids=torch.tensor([[5, *PICTURE, 7]]),
            pixel_values=pictures(1),
            use_cache=False,
            max_new_tokens=3,
            do_sample=False,
            eos_token_id=None,
        )
        assert tap.errors() == {}
    assert media(receiver, "a") == [[(IMAGE, 1, 4)], [], []]


def test_a_model_of_text_has_no_labels_whatever_its_ids(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        model(torch.tensor([PICTURE]))
    assert media(receiver, "a") == [[]]


def test_a_segment_carries_the_pieces_that_its_own_positions_touch() -> None:
    spans = tuple(MediaSpan(Medium.IMAGE, position, 4) for position in (0, 10, 20))
    segment = StepSegment(RequestInfo("a"), "a", [3, 8, 14, 20], Phase.PREFILL, 30, media=spans)
    assert [span.position for span in segment.media_here()] == [0, 20]
