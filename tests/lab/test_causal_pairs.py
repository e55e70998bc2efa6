"""Which prompts are patched from which."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from probes.causal.pairs import Pair, aligned, paired

PROMPT = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def test_minimal_pairs_come_before_any_other() -> None:
    names = ["a", "", "a", "b", ""]
    labels = np.array([True, False, False, True, True])
    found, how = paired(names, labels, [5, 5, 9, 9, 5])
    assert found == (Pair(0, 2),)
    assert how == "1 minimal pairs"


def test_without_them_texts_of_similar_length_are_paired_once_each() -> None:
    labels = np.array([True, True, True, False, False])
    found, how = paired([""] * 5, labels, [4, 30, 10, 31, 9])
    assert found == (Pair(1, 3), Pair(2, 4))
    assert "similar length" in how


def test_prompts_of_one_length_and_frame_are_aligned_position_by_position() -> None:
    assert aligned([1, 2, 7, 8, 3], [1, 2, 5, 6, 3]) == [0, 1, 2, 3, 4]


def test_what_both_end_with_is_aligned_from_the_end() -> None:
    assert aligned([1, 7, 7, 7, 2, 3], [1, 8, 2, 3]) == [0, 1, 1, 1, 2, 3]
    assert aligned([1, 8, 2, 3], [1, 7, 7, 7, 2, 3]) == [0, 1, 4, 5]


@given(PROMPT, PROMPT)
def test_every_position_gets_one_of_the_donor_in_order(receiver: list[int], donor: list[int]) -> None:
    found = aligned(receiver, donor)
    assert len(found) == len(receiver)
    assert all(0 <= place < len(donor) for place in found)
    assert found == sorted(found)


@given(PROMPT)
def test_a_prompt_is_aligned_with_itself(prompt: list[int]) -> None:
    assert aligned(prompt, prompt) == list(range(len(prompt)))
