"""What is fed is what the served model would be fed, and never silently less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from probes.activations.feeding import Fed, Feeding, chat_ids, feed
from probes.activations.model import LabModel, open_model
from probes.data.texts import LabelledText, text_key
from probes.errors import LabError
from tests.tap.models import save_tiny

LONG = "import os " * 300


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> LabModel:
    return open_model(save_tiny(tmp_path_factory.mktemp("tiny")))


def fed(lab: LabModel, *texts: str, **how: object) -> Fed:
    made = [LabelledText(text, label=True, key=text_key(text)) for text in texts]
    return feed(lab, made, [f"a.csv row {number + 1}" for number in range(len(texts))], Feeding(**how))  # type: ignore[arg-type]


def test_a_text_is_a_chat_users_message_if_the_model_has_a_template_and_plain_if_asked(lab: LabModel) -> None:
    assert fed(lab, "hello").tokens == (chat_ids(lab, "hello"),)
    assert fed(lab, "hello").chat
    plain = fed(lab, "hello", chat=False)
    assert plain.tokens == (lab.tokenizer("hello")["input_ids"],)
    assert not plain.chat
    bare = replace(lab, template_digest="")
    assert fed(bare, "hello").tokens == plain.tokens
    with pytest.raises(LabError, match="no chat template: use --plain"):
        fed(bare, "hello", chat=True)


def test_a_text_that_is_too_long_is_named_with_its_tokens(lab: LabModel) -> None:
    count = len(chat_ids(lab, LONG))
    with pytest.raises(LabError, match=rf"a\.csv row 2: the text has {count:,} tokens and 512 are read: cut them"):
        fed(lab, "short", LONG)
    with pytest.raises(LabError, match=r"a\.csv row 1: .* and 20 are read; so have 1 others: cut"):
        fed(lab, LONG, LONG + "x", max_tokens=20)


@pytest.mark.parametrize("chat", [True, False])
def test_a_cut_text_keeps_its_beginning_and_the_templates_end(lab: LabModel, chat: bool) -> None:
    made = fed(lab, "short", LONG, max_tokens=50, truncate=True, chat=chat)
    assert made.truncated == 1
    assert len(made.tokens[1]) == 50
    assert LONG.startswith(made.texts[1].text)
    assert made.texts[1].key == text_key(LONG)
    if chat:
        assert made.tokens[1][-1] == chat_ids(lab, "short")[-1]
        assert made.tokens[1] == chat_ids(lab, made.texts[1].text)


def test_limits_that_no_text_can_meet_or_the_model_cannot_read_are_refused(lab: LabModel) -> None:
    with pytest.raises(LabError, match="fewer than the chat template takes"):
        fed(lab, "hello there", max_tokens=2, truncate=True)
    for tokens in (0, -1, 513):
        with pytest.raises(LabError, match="reads from 1 to 512 tokens"):
            fed(lab, "hello", max_tokens=tokens)


def test_a_text_that_the_template_refuses_is_named(lab: LabModel) -> None:
    template = lab.tokenizer.chat_template
    lab.tokenizer.chat_template = "{{ raise_exception('no such talk') }}"
    try:
        with pytest.raises(LabError, match=r"a\.csv row 1: the chat template refuses the text: no such talk"):
            fed(lab, "hello")
    finally:
        lab.tokenizer.chat_template = template


def test_models_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is no folder of a transformers model"):
        open_model(tmp_path)
    folder = save_tiny(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabError, match="tiny cannot be loaded"):
        open_model(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle would be run")
    with pytest.raises(LabError, match="tiny cannot be loaded"):
        open_model(folder)
