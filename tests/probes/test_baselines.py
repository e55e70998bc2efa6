"""Each baseline finds what it is there to find, and only that: a probe that beats them beats a real opponent."""

from __future__ import annotations

import numpy as np
import pytest

from probes.auroc import auroc
from probes.baselines import baseline_scores
from probes.data.texts import LabelledText

FILLER = ["amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jade", "kelp", "lagoon"]


def texts(kind: str, count: int, seed: int) -> list[LabelledText]:
    """Random words with one planted truth: a word, a piece inside random words, the length, or nothing."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        label = bool(rng.random() < 0.5)
        words = list(rng.choice(FILLER, size=8 if kind != "length" else (5 + 6 * label)))
        if kind == "word":
            words[rng.integers(8)] = "zebra" if label else "yacht"
        if kind == "piece":
            stem = "".join(rng.choice(list("abcdefgh"), size=6))
            words[rng.integers(8)] = stem + ("zxq" if label else "wvk")
        made.append(LabelledText(" ".join(words), label, "0"))
    return made


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    aurocs = {}
    for kind in ("word", "piece", "length", "nothing"):
        train, test = texts(kind, 160, seed=1), texts(kind, 400, seed=2)
        scores = baseline_scores(train, test, count_tokens=lambda text: len(text) // 3)
        labels = np.array([one.label for one in test])
        aurocs[kind] = {name: auroc(values, labels) for name, values in scores.items()}
    return aurocs


def test_a_planted_word_is_found_by_words_and_characters_not_by_length(found: dict[str, dict[str, float]]) -> None:
    assert found["word"]["tfidf_word"] > 0.99
    assert found["word"]["tfidf_char"] > 0.99
    assert found["word"]["length"] < 0.6


def test_a_planted_piece_of_words_is_found_by_characters_alone(found: dict[str, dict[str, float]]) -> None:
    assert found["piece"]["tfidf_char"] > 0.95
    assert found["piece"]["tfidf_word"] < 0.65
    assert found["piece"]["length"] < 0.6


def test_a_planted_length_is_found_by_length(found: dict[str, dict[str, float]]) -> None:
    assert found["length"]["length"] > 0.99


def test_where_nothing_is_planted_nothing_is_found(found: dict[str, dict[str, float]]) -> None:
    assert all(0.4 < value < 0.6 for value in found["nothing"].values())
