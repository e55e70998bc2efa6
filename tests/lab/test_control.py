"""A control of one's own model from one's own texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from probes.activations.in_memory import states_of
from probes.activations.model import open_model
from probes.build_control import block_rows
from probes.cli import main
from probes.control_texts import fed_halves, halved
from probes.data.reading import Loaded, Told
from probes.data.texts import LabelledText, text_key
from probes.prompts import EVERYDAY
from probes.registry import load_folder
from sidecar.types import TapPoint
from tests.tap.models import save_tiny

TEXTS = ["The river was high that spring.", "Send me the invoice, please.", "What a lovely day!", "2 + 2 = 4"] * 3


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("probes.control_texts.ANSWER_TOKENS", 4)
    return save_tiny(tmp_path)


def command(model: Path, tmp_path: Path, layers: str) -> list[str]:
    data = tmp_path / "mine.csv"
    data.write_text("text\n" + "".join(f'"{text} {i}"\n' for i, text in enumerate(TEXTS)))
    into = str(tmp_path / "artifacts")
    return ["control", "--model", str(model), "--data", str(data), "--layers", layers, "--into", into]


def test_each_layer_gets_a_control_that_the_sidecar_loads(model, tmp_path, capsys):
    assert main(command(model, tmp_path, "0,2")) == 0
    made = {one.manifest.name: one.manifest for one in load_folder(tmp_path / "artifacts", limit=9)}
    assert set(made) == {"control_00", "control_02"}
    assert "at block 1" in made["control_00"].description  # and none below the first
    assert made["control_02"].control_range is not None
    assert not list((tmp_path / "cache").rglob("*")), "states are not left behind"
    assert "control_02" in capsys.readouterr().out


@pytest.mark.parametrize(("layers", "said"), [("99", "the model's blocks are 0 to 3"), ("last", "want numbers")])
def test_a_layer_that_is_not_there_is_named(model, tmp_path, capsys, layers, said):
    assert main(command(model, tmp_path, layers)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_a_control_says_what_it_was_made_from_and_on_what_terms(model, tmp_path):
    assert main([*command(model, tmp_path, "1"), "--licence", "CC0", "--limit", "6"]) == 0
    (made,) = load_folder(tmp_path / "artifacts", limit=1)
    assert made.manifest.training_data.licence.startswith("CC0; ")
    assert made.manifest.training_data.name.startswith(f"{len(EVERYDAY) // 2 + 3} chats")
    assert made.manifest.feature_contract.hook_point.startswith("output of decoder block 1")


def text(content: str, group: str = "") -> LabelledText:
    return LabelledText(content, False, text_key(content), group=group)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", "", "x", "y"])), max_size=30))
def test_relatives_are_in_one_half_and_every_text_is_in_one(rows):
    made = [text(content, group) for content, group in rows]
    sides = halved(made)
    assert sorted([*sides[0], *sides[1]]) == list(range(len(made)))
    names = [{made[number].group or made[number].key for number in side} for side in sides]
    assert not names[0] & names[1]


def test_halves_are_even_where_no_text_has_relatives():
    assert halved([text(f"t{number}") for number in range(5)]) == ([0, 2, 4], [1, 3])


def test_a_text_that_is_nothing_but_position_0_is_left_out_and_a_long_one_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("probes.control_texts.ANSWER_TOKENS", 1)
    lab = open_model(save_tiny(tmp_path))
    lab.tokenizer.chat_template = None
    plain = replace(lab, template_digest="")
    long = "river " * 600
    texts = tuple(text(content) for content in ("x", "y", long, "spring"))
    loaded = Loaded(texts, ("1", "2", "3", "4"), "positive", "negative", (), Told(4, 0, 0, 0, 0))
    with Progress(disable=True) as bars:
        halves = fed_halves(plain, loaded, "mine", bars)
    assert len(halves.train) + len(halves.held_out) == len(EVERYDAY) + 2
    assert min(map(len, (*halves.train, *halves.held_out))) > 1
    assert max(map(len, halves.train)) == lab.model.config.max_position_embeddings
    assert halves.told()["rows"] == sum(len(ids) - 1 for ids in halves.train)


def test_rows_of_a_control_are_those_after_its_block_without_position_0(tmp_path):
    lab, ids = open_model(save_tiny(tmp_path)), [[0, 5, 6], [0, 7], [0, 8, 9, 10]]
    with Progress(disable=True) as bars:
        rows = block_rows(lab, ids, [1, 2], bars)
        states = states_of(lab, ids, [TapPoint(2)], 0, bars)[TapPoint(2)]
    assert {layer: of_layer.dtype for layer, of_layer in rows.items()} == {1: np.float64, 2: np.float64}
    np.testing.assert_allclose(rows[2], np.concatenate([of_text[1:] for of_text in states]), atol=1e-5)
