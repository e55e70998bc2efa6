"""What the model itself is asked after each text, and which of two answers it leans to: the behaviour that edits must move."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from probes.errors import LabError

_PLACE = "{text}"


class Measure(StrEnum):
    """In what the effect of an edit is told."""

    LOG_ODDS = "log_odds"  # nats: positive texts' mean log-odds less negative texts'
    AUROC = "auroc"  # how well the log-odds tell positive texts from negative ones


class Behaviour(BaseModel):
    """The question and its two answers. The model's log-odds for a text: of the next token, positive against negative answers.

    template: the user's message (or the plain prompt), with ``{text}`` where the text goes. lead: how the model's answer begins,
    given to it. positive, negative: answers, of which the first token counts; several answers on a side add up.

    >>> Behaviour(template="{text} Good?", positive=("yes",), negative=("no",)).asked("Fine.")
    'Fine. Good?'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    lead: str = ""
    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = Field(min_length=1)
    measure: Measure = Measure.LOG_ODDS

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if value.count(_PLACE) != 1:
            raise ValueError("the template must hold {text} exactly once")
        return value

    @field_validator("positive", "negative")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(answer.strip() for answer in value):
            raise ValueError("an answer is empty")
        return value

    def asked(self, text: str) -> str:
        return self.template.replace(_PLACE, text)

    def told(self) -> str:
        """What was measured, in one sentence."""
        answers = f"{_quoted(self.positive)} against {_quoted(self.negative)}"
        what = f"the model's own next-token log-odds of {answers} after {self.template!r}"
        if self.measure is Measure.AUROC:
            return f"AUROC of {what}, positive texts against negative ones"
        return f"{what}: their mean over positive texts less that over negative ones, in nats"


def contrast(positive: str, negative: str, *, chat: bool) -> Behaviour:
    """Ask which of two words fits the text, and begin the answer.

    The question comes first, so that all prompts begin alike; the answer's beginning leaves little else to say than the words.
    (SmolLM2 on film reviews: AUROC .87 so, .71 if it is asked to answer with one word and begins by itself.)
    """
    return Behaviour(
        template=f"Is this text {positive} or {negative}?\n\n{_PLACE}",
        lead="This text is" if chat else "\n\nThis text is",
        positive=(f" {positive}",),
        negative=(f" {negative}",),
    )


def from_answers(words: str, *, chat: bool) -> Behaviour:
    """``words``: the two answers, such as ``positive,negative``. Raises LabError if there are not two."""
    parts = [word.strip() for word in words.split(",")]
    if len(parts) != 2 or not all(parts):  # a positive and a negative one
        raise LabError(f"--answers wants two answers such as positive,negative, not {words!r}")
    return contrast(parts[0], parts[1], chat=chat)


def read_behaviour(path: Path) -> Behaviour:
    """Read a YAML or JSON file with the fields of `Behaviour`. Raises LabError naming the file and the field."""
    import yaml

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Behaviour.model_validate(told)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        raise LabError(f"{path}: {'; '.join(_problem(one) for one in error.errors())}") from None


def prompts(tokenizer: Any, behaviour: Behaviour, texts: Sequence[str], *, chat: bool) -> list[str]:
    """Each text as the model sees it, up to where its answer goes on."""
    asked = [behaviour.asked(text) for text in texts]
    if chat:
        asked = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": one}], add_generation_prompt=True, tokenize=False
            )
            for one in asked
        ]
    return [one + behaviour.lead for one in asked]


def encode(tokenizer: Any, prompt: str, *, chat: bool) -> list[int]:
    """Token ids; a chat template writes its special tokens itself."""
    return list(tokenizer(prompt, add_special_tokens=not chat)["input_ids"])


def first_tokens(tokenizer: Any, behaviour: Behaviour, prompt: str, *, chat: bool) -> tuple[list[int], list[int]]:
    """The tokens that positive and negative answers begin with, after ``prompt``.

    Raises LabError if an answer runs together with the prompt's end, or if both sides begin alike.
    """
    positive, negative = (
        sorted({first_token(tokenizer, prompt, answer, chat=chat) for answer in answers})
        for answers in (behaviour.positive, behaviour.negative)
    )
    if shared := set(positive) & set(negative):
        same = tokenizer.decode([min(shared)])
        raise LabError(f"a positive and a negative answer begin with the same token {same!r}: choose other answers")
    return positive, negative


def first_token(tokenizer: Any, prompt: str, answer: str, *, chat: bool) -> int:
    """The token that an answer begins with after ``prompt``. Raises LabError if it runs together with the prompt's end."""
    before, with_answer = encode(tokenizer, prompt, chat=chat), encode(tokenizer, prompt + answer, chat=chat)
    if len(with_answer) <= len(before) or with_answer[: len(before)] != before:
        raise LabError(f"the answer {answer!r} runs together with the end of the prompt: give it another space")
    return with_answer[len(before)]


def _quoted(answers: Sequence[str]) -> str:
    return " or ".join(repr(answer) for answer in answers)


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the file"
    return (
        f"{where}: {error['msg']} (in YAML, quote yes and no)"
        if error["type"] == "string_type"
        else f"{where}: {error['msg']}"
    )
