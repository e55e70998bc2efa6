"""What the model is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.causal.behaviour import (
    Behaviour,
    Measure,
    contrast,
    encode,
    first_tokens,
    from_answers,
    prompts,
    read_behaviour,
)
from probes.errors import LabError
from tests.lab.toy import toy_model
from tests.tap.models import _tokenizer


def behaviour(**changes) -> Behaviour:
    return Behaviour(**{"template": "{text} ?", "positive": (" yes",), "negative": (" no",), **changes})


def test_the_first_token_of_an_answer_is_found_behind_the_prompt() -> None:
    tokenizer = toy_model().tokenizer
    asked = behaviour(positive=(" yes", " positive text"))
    (prompt,) = prompts(tokenizer, asked, ["up1 plain2"], chat=False)
    positive, negative = first_tokens(tokenizer, asked, prompt, chat=False)
    assert sorted(tokenizer.decode([token]) for token in positive) == ["positive", "yes"]
    assert [tokenizer.decode([token]) for token in negative] == ["no"]


def test_a_chat_asks_through_the_template_and_begins_the_answer() -> None:
    tokenizer = _tokenizer()
    asked = contrast("good", "bad", chat=True)
    (prompt,) = prompts(tokenizer, asked, ["so it goes"], chat=True)
    assert prompt == "<|user|>Is this text good or bad?\n\nso it goes<|assistant|>This text is"
    assert tokenizer.decode(encode(tokenizer, prompt, chat=True)) == prompt


def test_an_answer_that_runs_into_the_prompt_is_refused() -> None:
    tokenizer = toy_model().tokenizer
    with pytest.raises(LabError, match="'es' runs together"):
        first_tokens(tokenizer, behaviour(positive=("es",)), "up1 y", chat=False)


def test_answers_that_begin_alike_are_refused() -> None:
    tokenizer = toy_model().tokenizer
    with pytest.raises(LabError, match="same token 'yes'"):
        first_tokens(tokenizer, behaviour(negative=(" no", " yes text")), "up1", chat=False)


@pytest.mark.parametrize("words", ["positive", "a,b,c", "positive,", ""])
def test_there_are_two_answers(words: str) -> None:
    with pytest.raises(LabError, match="two answers"):
        from_answers(words, chat=True)


def test_a_file_says_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "ask.yaml"
    path.write_text("template: 'Is it? {text}'\npositive: ['yes']\nnegative: ['no', nope]\nmeasure: auroc\n")
    found = read_behaviour(path)
    assert found.negative == ("no", "nope")
    assert found.measure is Measure.AUROC
    assert "AUROC" in found.told()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("template: 'no place'\npositive: [a]\nnegative: [b]\n", "template: .*exactly once"),
        ("template: '{text}'\npositive: [yes]\nnegative: [b]\n", "positive.0: .*quote yes and no"),
        ("template: '{text}'\npositive: []\nnegative: [b]\n", "positive: "),
        ("template: '{text}'\npositive: [' ']\nnegative: [b]\n", "positive: .*empty"),
        ("template: '{text}'\npositive: [a]\nnegative: [b]\ncolour: red\n", "colour: "),
        ("- a\n", "the file: "),
        ("template: [\n", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "ask.yaml"
    path.write_text(text)
    with pytest.raises(LabError, match=rf"ask\.yaml.*{said}"):
        read_behaviour(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nowhere\.yaml cannot be read"):
        read_behaviour(tmp_path / "nowhere.yaml")
