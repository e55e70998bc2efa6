"""AUROC is what its definition says, and shuffled labels teach nothing of the true ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.auroc import auroc
from probes.quality.controls import shuffled_labels
from tests.lab.scored import SCORED, arrays


@given(SCORED)
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(rows)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("label", [True, False])
def test_auroc_without_both_classes_is_an_error(label: bool) -> None:
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.zeros(3), np.full(3, label))


@given(SCORED, st.integers(0, 9))
def test_either_class_gets_its_share_of_shuffled_positives_to_the_nearest_row(
    rows: list[tuple[int, bool]], seed: int
) -> None:
    labels = arrays(rows)[1]
    shuffled = shuffled_labels(labels, np.random.default_rng(seed))
    for of_class in (labels, ~labels):
        assert abs(shuffled[of_class].sum() - labels.mean() * of_class.sum()) <= 0.5
