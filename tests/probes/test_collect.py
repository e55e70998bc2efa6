"""Collected states are the model's own, row by row, and the model is left as it was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

from probes.collect import LabModel, chat_ids, collect, generate, load_lab_model
from probes.states import States, forget_states
from tests.tap.models import EOS, LAYERS, WIDTH, save_tiny

TEXTS = [[0, 5, 6, 7, 8, 9], [0, 5, 6], [0, 5, 6, 7, *range(20, 60)], [0, 5, 6, 7]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> LabModel:
    return load_lab_model(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STETHOSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bars() -> Progress:
    return Progress(disable=True)


def alone(lab: LabModel, ids: list[int]) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        states: tuple[torch.Tensor, ...] = lab.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return states


# Too few texts share nothing; one text alone shares all but its last token; a text of one token shares nothing.
@pytest.mark.parametrize("texts", [TEXTS, [[9, 8], [7, 6, 5]], [[0, 5, 6, 7]], [[3]]], ids=len)
def test_states_are_those_of_each_text_alone(lab: LabModel, bars: Progress, texts: list[list[int]]) -> None:
    found = collect(lab, texts, [0, 2], bars)
    for index, ids in enumerate(texts):
        wanted = alone(lab, ids)
        for layer, states in found.items():
            np.testing.assert_allclose(states.text(index), wanted[layer + 1][0].numpy(), atol=1e-5)


def test_the_shared_beginning_is_kept_once(lab: LabModel, bars: Progress) -> None:
    states = collect(lab, TEXTS, [1], bars)[1]
    assert states.prefix.shape == (2, WIDTH)
    assert len(states) == len(TEXTS)
    assert states.starts[-1] == sum(len(ids) - 2 for ids in TEXTS)


def test_the_model_is_left_as_it_was_found(lab: LabModel, bars: Progress) -> None:
    before = alone(lab, TEXTS[0])[-1]
    hooks = [len(block._forward_hooks) for block in lab.model.get_decoder().layers]
    collect(lab, TEXTS, [0], bars)
    assert len(hooks) == LAYERS
    assert [len(block._forward_hooks) for block in lab.model.get_decoder().layers] == hooks
    assert torch.equal(alone(lab, TEXTS[0])[-1], before)


def test_states_are_found_on_disk_the_second_time_and_gone_when_forgotten(
    lab: LabModel, bars: Progress, cache: Path
) -> None:
    first = collect(lab, TEXTS, [1], bars)[1]
    read = len(bars.tasks)
    again: States = collect(lab, TEXTS, [1], bars)[1]
    assert len(bars.tasks) == read
    np.testing.assert_array_equal(again.tails, first.tails)
    forget_states()
    assert not (cache / "states").exists()
    collect(lab, TEXTS, [1], bars)
    assert len(bars.tasks) > read


def test_other_texts_or_layers_are_never_mistaken_for_those_on_disk(lab: LabModel, bars: Progress) -> None:
    kept = collect(lab, [[1, 2, 3], [1, 4]], [1], bars)[1]
    other = collect(lab, [[1, 2], [1, 3, 4]], [1], bars)[1]
    assert kept.starts != other.starts
    assert sorted(collect(lab, [[1, 2, 3], [1, 4]], [1, 2], bars)) == [1, 2]


def test_answers_in_a_batch_are_those_of_each_prompt_alone_and_end_at_the_end_of_turn(
    lab: LabModel, bars: Progress
) -> None:
    prompts = ["hi", "a much longer question than the other one", "import os"]
    for prompt, chat in zip(prompts, generate(lab, prompts, 12, bars), strict=True):
        ids = chat_ids(lab, prompt)
        assert chat[: len(ids)] == ids
        answer = chat[len(ids) :]
        assert 1 <= len(answer) <= 12
        assert EOS not in answer[:-1]
        for at in range(len(ids), len(chat)):
            with torch.inference_mode():
                logits = lab.model(torch.tensor([chat[:at]])).logits[0, -1]
            # Padding moves logits by rounding: the greedy choice may differ only between equals.
            assert logits[chat[at]] >= logits.max() - 1e-4


def test_identity_is_the_one_that_the_tap_finds(lab: LabModel) -> None:
    from sidecar.tap.identity import identify

    assert lab.identity == identify(lab.model, lab.tokenizer, name=lab.identity.name)
    assert len(lab.template_digest) == 64
