"""A model's own answers are what it says to each prompt alone, and end where it ends them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from rich.progress import Progress

from probes.activations.feeding import chat_ids
from probes.activations.model import LabModel, open_model
from probes.answers import answered
from tests.tap.models import EOS, save_tiny

PROMPTS = ["hi", "a much longer question than the other one", "import os"]
TOKENS = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> LabModel:
    return open_model(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def ends(lab: LabModel) -> Iterator[object]:
    """What the model's configuration calls an end, to be changed by a test."""
    config = lab.model.generation_config
    before = config.eos_token_id
    yield config
    config.eos_token_id = before


def answers(lab: LabModel) -> list[list[int]]:
    with Progress(disable=True) as bars:
        chats = answered(lab, PROMPTS, TOKENS, bars)
    asked = [chat_ids(lab, prompt) for prompt in PROMPTS]
    assert [chat[: len(ids)] for chat, ids in zip(chats, asked, strict=True)] == asked
    return [chat[len(ids) :] for chat, ids in zip(chats, asked, strict=True)]


def test_answers_in_a_batch_are_those_of_each_prompt_alone_and_end_at_the_end_of_turn(lab: LabModel) -> None:
    for prompt, answer in zip(PROMPTS, answers(lab), strict=True):
        assert 1 <= len(answer) <= TOKENS
        assert EOS not in answer[:-1]
        ids = chat_ids(lab, prompt)
        for at, token in enumerate(answer):
            with torch.inference_mode():
                logits = lab.model(torch.tensor([ids + answer[:at]])).logits[0, -1]
            # Padding moves logits by rounding: the greedy choice may differ only between equals.
            assert logits[token] >= logits.max() - 1e-4


def test_a_model_with_several_ends_stops_at_the_first_of_them(lab: LabModel, ends) -> None:
    ends.eos_token_id = None
    endless = answers(lab)
    assert {len(answer) for answer in endless} == {TOKENS}
    ends.eos_token_id = [EOS, endless[0][3], endless[1][5]]
    for answer, whole in zip(answers(lab), endless, strict=True):
        stop = next((at for at, token in enumerate(whole, start=1) if token in ends.eos_token_id), TOKENS)
        assert answer == whole[:stop]
