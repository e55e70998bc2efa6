"""Labels of every common kind mean the same; what cannot be understood is refused with its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probes.data.labels import as_bool, read_labels
from probes.errors import LabError

WANTED = [True, False, True, False]


@pytest.mark.parametrize(
    "labels",
    [
        [True, False, True, False],
        [1, 0, 1, 0],
        [1, -1, 1, -1],
        [1.0, 0.0, 1.0, 0.0],
        ["1", "0", "1", "0"],
        ["1", "-1", "1.0", "-1"],
        ["true", "false", "true", "false"],
        ["True", "False", "True", "False"],
        ["yes", "no", "yes", "no"],
        ["positive", "negative", "positive ", " negative"],
        np.array([1, 0, 1, 0], np.int8),
        np.array([True, False, True, False]),
        np.array([1, -1, 1, -1], np.float32),
    ],
    ids=str,
)
def test_plain_labels_need_no_word(labels: Any) -> None:
    found = as_bool(labels)
    assert found.dtype == np.bool_
    assert found.tolist() == WANTED


def test_other_words_need_the_positive_one_and_its_case_does_not_matter() -> None:
    labels = ["spam", "ham", "spam", "ham"]
    with pytest.raises(LabError, match=r"'ham' and 'spam'.*--positive"):
        as_bool(labels)
    assert as_bool(labels, positive="SPAM").tolist() == WANTED
    assert as_bool(labels, positive="ham").tolist() == [not label for label in WANTED]


def test_the_positive_word_turns_plain_labels_around() -> None:
    assert as_bool([0, 1], positive="0").tolist() == [True, False]


def test_a_positive_word_that_is_no_label_is_refused() -> None:
    with pytest.raises(LabError, match="no label is 'eggs': the labels are 'ham' and 'spam'"):
        as_bool(["spam", "ham"], positive="eggs")


def test_two_other_numbers_need_the_positive_one() -> None:
    with pytest.raises(LabError, match="'1' and '2'"):
        as_bool([1, 2])
    assert as_bool([1, 2], positive="2").tolist() == [False, True]


@pytest.mark.parametrize("missing", [float("nan"), None, "", "  ", "NaN"], ids=repr)
def test_a_missing_label_is_named(missing: Any) -> None:
    with pytest.raises(LabError, match="label 3: the label is missing"):
        read_labels([1, 0, missing, 1])


def test_one_class_is_no_task() -> None:
    with pytest.raises(LabError, match="every label is '1'"):
        as_bool([1, 1, 1])


def test_a_third_class_is_named_where_it_first_stands() -> None:
    with pytest.raises(LabError, match=r"row 4: the third class of 3 \('0', '1', '2'\)"):
        read_labels([1, 0, 1, 2, 2], where=lambda index: f"row {index + 1}")


def test_no_labels_and_a_table_of_labels_are_refused() -> None:
    with pytest.raises(LabError, match="there are no labels"):
        as_bool([])
    with pytest.raises(LabError, match="one column"):
        as_bool([[0, 1], [1, 0]])


def test_a_label_of_another_type_is_refused() -> None:
    with pytest.raises(LabError, match=r"label 2: .*not list"):
        read_labels([1, [0]])


def test_names_are_those_of_the_data() -> None:
    labels = read_labels(["Spam", "ham"], "spam")
    assert (labels.positive, labels.negative) == ("Spam", "ham")
