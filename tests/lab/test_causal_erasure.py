"""LEACE-erased data cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from probes.causal.erasure import Refit, fit_erasure, pooled, refit
from probes.manifest import Aggregation, AggregationKind
from sidecar.types import TapPoint
from tests.lab.planted import planted_store

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data(n: int, width: int, seed: int = 0, scale: float = 1.0) -> Parts:
    """Train and test rows with the label readable along several directions at once."""
    draws = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    states = draws.normal(size=(n, width)) * np.geomspace(1, scale, width)
    states[:, :3] += 1.5 * labels[:, None]
    half = n // 2
    return states[:half], labels[:half], states[half:], labels[half:]


@pytest.mark.parametrize(("n", "width"), [(600, 20), (120, 200)], ids=["more rows than width", "fewer"])
@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["even", "a few massive dimensions"])
def test_a_probe_refitted_on_erased_data_reads_a_half(n: int, width: int, scale: float) -> None:
    train, labels, test, test_labels = data(n, width, scale=scale)
    found = refit([fit_erasure(train, labels)], [train], labels, [test], test_labels)
    assert found.before > 0.75
    assert found.after == pytest.approx(0.5, abs=0.03)
    assert found.unreadable


def test_a_planted_store_is_erased(tmp_path) -> None:
    store = planted_store(tmp_path / "acts", n=200, strength=3.0)
    labels = np.array([text.label for text in store.texts])
    states = pooled(store.at(TapPoint(1)), range(200), Aggregation(kind=AggregationKind.MEAN))
    erasure = fit_erasure(states[:100], labels[:100])
    found = refit([erasure], [states[:100]], labels[:100], [states[100:]], labels[100:])
    assert found.before > 0.9
    assert found.after == pytest.approx(0.5, abs=0.03)


def test_erasing_every_state_and_pooling_is_pooling_and_erasing() -> None:
    train, labels, *_ = data(200, 10)
    erasure = fit_erasure(train, labels)
    text = np.random.default_rng(3).normal(size=(7, 10)).astype(np.float32)
    for kind in (AggregationKind.MEAN, AggregationKind.LAST, AggregationKind.EMA):
        aggregation = Aggregation(kind=kind)
        before = erasure(pooled([text], [0], aggregation))
        assert pooled([erasure(text.astype(np.float64))], [0], aggregation) == pytest.approx(before, abs=1e-6)


def test_a_random_erasure_leaves_the_concept_readable() -> None:
    train, labels, test, test_labels = data(600, 20)
    erasure = fit_erasure(train, labels)
    left, right = erasure.at_random(np.random.default_rng(0))
    assert float((right.T @ left).item()) == pytest.approx(1.0, abs=1e-6)  # a projection, as the real one is

    def erased(rows: np.ndarray) -> np.ndarray:
        return rows - ((rows - erasure.mean) @ right) @ left.T

    found = refit([erasure], [erased(train)], labels, [erased(test)], test_labels)
    assert found.before > 0.85


def test_what_is_still_read_is_called_readable() -> None:
    assert not Refit(before=0.9, after=0.7, slack=0.1).unreadable
    assert not Refit(before=0.9, after=0.3, slack=0.1).unreadable
