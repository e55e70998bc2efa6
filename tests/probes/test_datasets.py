"""No text, and nothing much like it, is ever in two splits."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.build_control import SETS, TEXT_LIMIT
from probes.datasets import (
    SHINGLE_WORDS,
    Example,
    Source,
    Split,
    data_digest,
    load_examples,
    normalised,
    unique_examples,
)

needs_sets = pytest.mark.skipif(
    importlib.util.find_spec("sae_probes") is None,
    reason="the labelled sets are missing: pip install --no-deps sae-probes==0.4.2",
)
WORDS = st.lists(st.sampled_from(["red", "green", "blue", "old", "new", "car", "tree"]), min_size=1, max_size=12)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = normalised(text).split()
    return {tuple(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)}


def assert_apart(examples: list[Example]) -> None:
    plain = [normalised(example.text) for example in examples]
    assert len(set(plain)) == len(plain)
    seen = Counter(shingle for example in examples for shingle in shingles(example.text))
    assert all(count == 1 for count in seen.values())


@given(st.lists(st.tuples(WORDS.map(" ".join), st.booleans()), max_size=60))
def test_no_two_examples_are_equal_or_share_five_words_in_a_row(rows: list[tuple[str, bool]]) -> None:
    assert_apart([*unique_examples(rows)])


@given(st.lists(st.tuples(WORDS.map(" ".join), st.booleans()), max_size=40), st.randoms())
def test_the_order_of_rows_changes_nothing(rows: list[tuple[str, bool]], random: st.DataObject) -> None:
    shuffled = sorted(rows, key=lambda _row: random.random())  # type: ignore[attr-defined]
    assert unique_examples(shuffled) == unique_examples(rows)


@pytest.mark.parametrize(
    "twin",
    ["a  Great FILM, 2 hours!", "a great film 3 hours", "A great ﬁlm: 4 hours", "a great film \uff15 hours"],
)
def test_case_marks_digits_and_ligatures_make_no_new_text(twin: str) -> None:
    assert len(unique_examples([("A great film, 1 hours", True), (twin, True)])) == 1


def test_a_text_found_under_both_labels_is_dropped() -> None:
    assert [example.text for example in unique_examples([("same", True), ("Same!", False), ("other", True)])] == [
        "other"
    ]


def test_a_phrase_inside_a_longer_text_is_not_an_example_of_its_own() -> None:
    rows = [("one of the best films of the year", True), ("i say one of the best films ever made", True)]
    assert len(unique_examples(rows)) == 1


def test_a_text_keeps_its_split_whatever_else_is_in_the_set() -> None:
    texts = [(f"text number {chr(97 + at % 26)}{chr(97 + at // 26)}", at % 2 == 0) for at in range(200)]
    alone = {example.text: example.split for row in texts for example in unique_examples([row])}
    together = {example.text: example.split for example in unique_examples(texts)}
    assert together == alone
    assert set(Counter(together.values())) == set(Split)


def test_digest_tells_which_rows_were_used() -> None:
    one, two = unique_examples([("one", True), ("two", False)])
    assert data_digest([one, two]) != data_digest([one])
    assert data_digest([one]) != data_digest([Example(one.text, not one.label, one.key)])


@needs_sets
@pytest.mark.parametrize("source", SETS, ids=lambda source: source.file)
def test_the_controls_sets_are_apart_and_balanced_enough(source: Source) -> None:
    examples = load_examples(source, limit=TEXT_LIMIT)
    assert_apart(list(examples))
    assert len(examples) <= TEXT_LIMIT
    for split in Split:
        labels = [example.label for example in examples if example.split is split]
        assert 0.2 <= sum(labels) / len(labels) <= 0.8
        assert min(sum(labels), len(labels) - sum(labels)) >= 50


@needs_sets
def test_a_smaller_limit_takes_some_of_the_same_texts() -> None:
    many, few = (load_examples(SETS[0], limit=limit) for limit in (400, 100))
    assert set(few) < set(many)
    assert len(few) == 100
