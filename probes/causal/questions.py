"""The test texts that the model is asked about, as it sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.activations.facts import StoreFacts
from probes.causal.behaviour import Behaviour, encode, first_tokens, prompts
from probes.data.texts import LabelledText
from probes.errors import LabError
from probes.quality.bootstrap import group_numbers
from sidecar.types import BoolArray, IndexArray

FEWEST = 8


@dataclass(frozen=True, slots=True)
class Questions:
    """prompts: token ids. labels: bool [n]. pairs: `LabelledText.pair` of each. groups: int [n], see `group_numbers`.

    answers: the tokens that positive and negative answers begin with. left_out: texts not asked about because of their length.
    """

    prompts: tuple[list[int], ...]
    labels: BoolArray
    pairs: tuple[str, ...]
    groups: IndexArray
    answers: tuple[list[int], list[int]]
    left_out: int

    @property
    def lengths(self) -> list[int]:
        return [len(prompt) for prompt in self.prompts]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many texts are asked about, half of them of each label, and how long their prompts may be."""

    texts: int
    max_tokens: int
    seed: int


def questions(
    tokenizer: Any, behaviour: Behaviour, facts: StoreFacts, texts: Sequence[LabelledText], limits: Limits
) -> Questions:
    """Choose among the test texts and put the question to them; minimal pairs first and whole, else one text of a group.

    Raises LabError if fewer than `FEWEST` of either label are left.
    """
    ordered = _in_order(texts, limits.seed)
    asked = prompts(tokenizer, behaviour, [text.text for text in ordered], chat=facts.chat)
    ids = [encode(tokenizer, prompt, chat=facts.chat) for prompt in asked]
    fit = [index for index, one in enumerate(ids) if facts.skip_positions < len(one) <= limits.max_tokens]
    chosen = _balanced([ordered[index] for index in fit], fit, limits.texts)
    labels = np.array([ordered[index].label for index in chosen], dtype=np.bool_)
    _must_suffice(labels, limits)
    kept = [ordered[index] for index in chosen]
    return Questions(
        prompts=tuple(ids[index] for index in chosen),
        labels=labels,
        pairs=tuple(text.pair for text in kept),
        groups=group_numbers([text.group or text.pair for text in kept]),
        answers=first_tokens(tokenizer, behaviour, asked[chosen[0]], chat=facts.chat),
        left_out=len(ids) - len(fit),
    )


def _in_order(texts: Sequence[LabelledText], seed: int) -> list[LabelledText]:
    """At random by seed and content; the texts of a pair beside each other, pairs first."""

    def place(text: LabelledText) -> tuple[bool, str, bool, str]:
        drawn = hashlib.sha256(f"{seed} {text.pair or text.key}".encode()).hexdigest()
        return not text.pair, drawn, not text.label, text.key

    return sorted(texts, key=place)


def _balanced(texts: Sequence[LabelledText], places: Sequence[int], limit: int) -> list[int]:
    """The first of each label, as many of one as of the other; near-duplicates would count one text twice."""
    sides: dict[bool, list[int]] = {True: [], False: []}
    groups: set[tuple[str, bool]] = set()
    for text, place in zip(texts, places, strict=True):
        name = (text.group or text.key, bool(text.pair) and text.label)
        if name not in groups:
            groups.add(name)
            sides[text.label].append(place)
    half = min(limit // 2, len(sides[True]), len(sides[False]))
    return sorted(sides[True][:half] + sides[False][:half])


def _must_suffice(labels: BoolArray, limits: Limits) -> None:
    found = int(labels.sum())
    if found < FEWEST:
        raise LabError(
            f"{found} positive and as many negative test texts can be asked about (at most {limits.texts} texts of at most "
            f"{limits.max_tokens} tokens, one of each group of near-duplicates); want at least {FEWEST} of each"
        )
