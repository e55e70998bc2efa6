"""States that are read into memory are the model's own, row by row, and the model is left as it was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.progress import Progress

from probes.activations.in_memory import states_of
from probes.activations.model import LabModel, open_model
from sidecar.types import FloatArray, TapPoint
from tests.tap.models import save_tiny

POINTS = [TapPoint(2), TapPoint(0)]
# More than one batch, in no order; one text alone; one of a single token.
TEXTS = [[[0, 5, 6, 7, 8, 9], [3], *([[0, 5, 6, 7, *range(20, 220)]] * 6), [0, 5, 6, 7]], [[0, 5, 6, 7]], [[3]]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> LabModel:
    return open_model(save_tiny(tmp_path_factory.mktemp("tiny")))


def alone(lab: LabModel, ids: list[int]) -> list[FloatArray]:
    with torch.inference_mode():
        return [rows[0].numpy() for rows in lab.model(torch.tensor([ids]), output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("texts", TEXTS, ids=len)
def test_states_are_those_of_each_text_alone_but_for_the_skipped_ones(
    lab: LabModel, texts: list[list[int]], skip: int
) -> None:
    with Progress(disable=True) as bars:
        found = states_of(lab, texts, POINTS, skip, bars)
        assert [task.completed for task in bars.tasks] == [sum(map(len, texts))]
    assert list(found) == POINTS
    for point, states in found.items():
        for ids, rows in zip(texts, states, strict=True):
            wanted = alone(lab, ids)[point.layer + 1][min(skip, len(ids) - 1) :]
            np.testing.assert_allclose(rows, wanted, atol=1e-5)


def test_the_model_is_left_as_it_was_found(lab: LabModel) -> None:
    before = alone(lab, TEXTS[0][0])[-1]
    blocks = lab.model.get_decoder().layers
    hooks = [len(block._forward_hooks) for block in blocks]
    with Progress(disable=True) as bars:
        states_of(lab, TEXTS[0], POINTS, 1, bars)
    assert [len(block._forward_hooks) for block in blocks] == hooks
    np.testing.assert_array_equal(alone(lab, TEXTS[0][0])[-1], before)
