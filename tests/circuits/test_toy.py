"""The committed toy solves its task, by the circuit that it is known for, and is what the script makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probes.activations.model import LabModel
from probes.circuits.nodes import Node
from probes.circuits.running import Decoder, groups
from probes.circuits.toy import AGAIN, FIRST, accuracy, texts, toy_pairs, train
from tests.circuits.toys import FOLDER, INDUCTION, PREVIOUS_TOKEN, toy


@pytest.fixture(scope="module")
def lab() -> LabModel:
    return toy()


def attention(lab: LabModel, node: Node, ids: torch.Tensor) -> torch.Tensor:
    """What the head looks at, [B, T, T], computed as transformers' plain arithmetic does."""
    kept = lab.model.config._attn_implementation
    lab.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return lab.model(ids, output_attentions=True).attentions[node.where.layer][:, node.head]
    finally:
        lab.model.set_attn_implementation(kept)


def test_the_checkpoint_is_under_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


def test_it_knows_more_than_99_percent_of_the_words_that_can_be_known(lab: LabModel) -> None:
    assert accuracy(lab.model, n=512, seed=11) > 0.99


def test_it_answers_every_clean_pair_and_follows_every_corrupt_one(lab: LabModel) -> None:
    decoder = Decoder(lab.model)
    for group in groups(toy_pairs(64, seed=11)):
        assert float(decoder.metrics(group.clean).min()) > 0
        assert float(decoder.metrics(group.corrupt).max()) < 0


def test_a_head_of_block_0_looks_at_the_word_before(lab: LabModel) -> None:
    drawn = torch.from_numpy(texts(64, np.random.default_rng(11)).ids)
    looks = attention(lab, PREVIOUS_TOKEN, drawn)
    at = torch.arange(2, 1 + FIRST)
    assert PREVIOUS_TOKEN.where.layer == 0
    assert float(looks[:, at, at - 1].mean()) > 0.9


def test_a_head_of_block_1_looks_at_what_followed_the_same_word(lab: LabModel) -> None:
    (group,) = groups(toy_pairs(40, seed=11))
    looks = attention(lab, INDUCTION, group.clean.ids)[:, -1]
    followed = [ids[1:-1].tolist().index(int(ids[-1])) + 2 for ids in group.clean.ids]
    assert INDUCTION.where.layer == 1
    assert float(looks[torch.arange(len(followed)), followed].mean()) > 0.9


def test_a_text_can_be_known_only_where_it_says_so() -> None:
    drawn = texts(50, np.random.default_rng(3))
    assert drawn.ids.shape == (50, 1 + FIRST + AGAIN)
    assert not drawn.known[:, : FIRST + 2].any()
    for ids, known in zip(drawn.ids.tolist(), drawn.known, strict=True):
        for at in np.flatnonzero(known):
            before = ids[at - 1]
            assert ids[at] == (ids[1] if before == 1 else ids[ids.index(before) + 1])


def test_training_is_the_same_for_the_same_seed() -> None:
    one, other, third = (train(seed, steps=3).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], third["lm_head.weight"])


@pytest.mark.timeout(1800)  # two minutes of one core's own
def test_the_script_makes_an_equal_of_the_committed_checkpoint(full: bool, tmp_path: Path) -> None:
    """In full: trained anew, it has the same circuit. Else the same shapes. (Bits depend on the machine and torch's version.)"""
    committed = load_file(FOLDER / "model.safetensors")
    made = train(0) if full else train(0, steps=1)
    assert {name: one.shape for name, one in made.state_dict().items()} == {
        name: one.shape for name, one in committed.items()
    }
    if full:
        assert accuracy(made, seed=11) > 0.99
