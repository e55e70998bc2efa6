"""Fits over more activations than memory: read again and again or added up once, they are the fits in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.activations.store import Activations, ActivationStore
from probes.auroc import auroc
from probes.errors import LabError
from probes.kinds.descent import Passes
from probes.kinds.mass_mean import MassMean
from probes.kinds.moments import ClassMoments, Moments, class_moments
from probes.kinds.registry import KINDS
from probes.kinds.rows import batches
from probes.kinds.weighing import text_weights
from probes.manifest import Aggregation, AggregationKind
from sidecar.types import BoolArray, FloatArray, TapPoint
from tests.lab.arrays import Planted, planted
from tests.lab.planted import planted_direction, planted_store

LEARN, HELD_OUT = planted(seed=21), planted(seed=22)
MEAN = Aggregation(kind=AggregationKind.MEAN)
READ_AGAIN = [name for name, kind in KINDS.items() if "memory_bytes" in kind().get_params()]


def cosine(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    first, second = (np.asarray(vector, dtype=np.float64).ravel() for vector in (one, other))
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


WIDTH, ROWS, COUNT = 128, 60, 800
SIZE_BYTES = WIDTH * ROWS * COUNT * 4  # 25 MB


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Texts that are views of a file; coordinate 7 tells the label."""
    path, labels = tmp_path_factory.mktemp("rows") / "states.npy", np.arange(COUNT) % 2 == 0
    states = np.random.default_rng(3).standard_normal((COUNT, ROWS, WIDTH), dtype=np.float32)
    states[labels, :, 7] += 0.3
    np.save(path, states)
    return Planted(list(np.load(path, mmap_mode="r")), labels, np.eye(WIDTH)[7])


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    """The peak of what Python and numpy have allocated since the test began, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("kind", READ_AGAIN)
def test_what_is_read_again_gives_what_is_held(kind: str) -> None:
    held, again = (KINDS[kind](memory_bytes=size).fit(LEARN.texts, LEARN.labels) for size in (256 << 20, 0))
    assert cosine(held.served_.directions[:, 0], again.served_.directions[:, 0]) > 0.9999
    apart = held.decision_function(HELD_OUT.texts) - again.decision_function(HELD_OUT.texts)
    assert np.abs(apart).max() < 0.01 * held.decision_function(HELD_OUT.texts).std()


STREAMED = {
    "mass_mean": MassMean(),
    "logistic": KINDS["logistic"](strength=0.001, memory_bytes=0),
    "token": KINDS["token"](strength=0.001, memory_bytes=0),
    "attention": KINDS["attention"](strength=0.001, memory_bytes=0),
}


@pytest.mark.parametrize("kind", STREAMED)
def test_a_fit_takes_a_small_part_of_the_memory_that_the_data_would(
    kind: str, on_disk: Planted, traced: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.kinds.descent._BATCH_BYTES", 1 << 20)
    made = STREAMED[kind].fit(on_disk.texts, on_disk.labels)
    assert traced() < SIZE_BYTES / 4
    assert on_disk.cosine(made.served_.directions) > 0.7


def test_texts_are_held_only_up_to_the_limit() -> None:
    size = sum(text.nbytes for text in LEARN.texts)
    reads: list[int] = []

    class Counting(list[FloatArray]):
        def __getitem__(self, at: Any) -> Any:
            reads.append(at)
            return super().__getitem__(at)

    for limit, wanted in ((size, 2 * 120 + 1), (size - 1, 4 * 120 + 1)):
        reads.clear()
        passes = Passes(Counting(LEARN.texts), memory_bytes=limit)
        for _ in range(3):
            assert sum(len(batch.spans) for batch in passes) == 120
        assert len(reads) == wanted


@given(limit=st.integers(1, 5000))
def test_batches_are_all_texts_in_order_whatever_their_size(limit: int) -> None:
    found = [
        (batch.first + place, rows)
        for batch in batches(LEARN.texts, 12, limit)
        for place, rows in enumerate(np.split(batch.rows, batch.spans.starts[1:]))
    ]
    assert [index for index, _ in found] == list(range(120))
    assert all(np.array_equal(rows, LEARN.texts[index]) for index, rows in found)


@given(cuts=st.lists(st.integers(0, 30), max_size=5), order=st.randoms(use_true_random=False))
def test_sums_of_parts_are_the_sum_of_all_however_they_are_cut_and_put_together(cuts: list[int], order: Any) -> None:
    random = np.random.default_rng(8)
    vectors, weights = random.normal(size=(30, 4)) + 1e4, random.uniform(0.5, 2, size=30)
    bounds = [0, *sorted(cuts), 30]
    parts = [
        Moments.of(vectors[start:stop], weights[start:stop]) if stop > start else Moments.none(4)
        for start, stop in pairwise(bounds)
    ]
    order.shuffle(parts)
    total = Moments.none(4)
    for part in parts:
        total = total.merged(part)
    whole = Moments.of(vectors, weights)
    assert total.count == pytest.approx(whole.count)
    assert np.allclose(total.mean, whole.mean, rtol=1e-12)
    assert np.allclose(total.scatter, whole.scatter, rtol=1e-7, atol=1e-7)


def _means() -> npt.NDArray[np.float64]:
    return np.array([text.mean(axis=0, dtype=np.float64) for text in LEARN.texts])


def test_mass_mean_is_the_direction_of_linear_discriminant_analysis() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    other = LinearDiscriminantAnalysis(solver="lsqr").fit(_means(), LEARN.labels)
    made = MassMean(strength=1e9).fit(LEARN.texts, LEARN.labels)
    assert cosine(made.served_.directions, other.coef_) > 0.999999
    assert auroc(made.decision_function(LEARN.texts), LEARN.labels) == auroc(
        other.decision_function(_means()), LEARN.labels
    )


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_mass_mean_is_the_direction_of_ridge_regression_at_the_matching_penalty(strength: float) -> None:
    from sklearn.linear_model import Ridge

    means = _means()
    within = [means[of_class] - means[of_class].mean(axis=0) for of_class in (LEARN.labels, ~LEARN.labels)]
    spread = np.concatenate(within).std(axis=0)
    ridge = Ridge(alpha=len(means) / strength).fit(means / spread, np.where(LEARN.labels, 1.0, -1.0))
    made = MassMean(strength=strength).fit(LEARN.texts, LEARN.labels)
    assert cosine(made.served_.directions, ridge.coef_ / spread) > 0.999999


def test_mass_mean_reads_each_text_once_and_its_zero_is_half_way_between_the_means() -> None:
    made = MassMean().fit(LEARN.texts, LEARN.labels)
    scores = made.decision_function(LEARN.texts)
    assert scores[LEARN.labels].mean() == pytest.approx(-scores[~LEARN.labels].mean(), rel=1e-4)


def test_a_fit_from_sums_is_the_fit_from_texts() -> None:
    weights = text_weights(LEARN.labels)
    halves = [
        class_moments(LEARN.texts[part], LEARN.labels[part], weights[part], MEAN)
        for part in (slice(50), slice(50, None))
    ]
    summed = MassMean().fit_moments(halves[0].merged(halves[1]))
    whole = MassMean().fit(LEARN.texts, LEARN.labels)
    assert np.allclose(summed.served_.directions, whole.served_.directions, rtol=1e-5)
    assert summed.classes_.tolist() == [False, True]


def test_sums_of_one_class_are_refused() -> None:
    one = Moments.of(_means(), np.ones(120))
    with pytest.raises(LabError, match="one class only"):
        MassMean().fit_moments(ClassMoments(one, Moments.none(12)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("acts"), n=120, seed=4)


def _told(store: ActivationStore) -> tuple[Activations, BoolArray]:
    return store.at(TapPoint(2)), np.array([text.label for text in store.texts])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_straight_from_a_store(kind: str, store: ActivationStore) -> None:
    texts, labels = _told(store)
    made = KINDS[kind]().fit(texts, labels)
    assert cosine(made.served_.directions[:, 0], planted_direction(16, 4)) > 0.9
    in_memory = KINDS[kind]().fit(list(texts), labels)
    assert np.array_equal(made.served_.directions, in_memory.served_.directions)


def test_a_store_of_more_than_the_limit_is_fitted_with_little_memory(tmp_path: Path, traced: Callable[[], int]) -> None:
    store = planted_store(tmp_path / "acts", n=200, width=256, layers=1, seed=6)
    tracemalloc.reset_peak()
    texts, labels = _told_at(store, 0)
    made = MassMean().fit(texts, labels)
    assert made.n_features_in_ == 256
    assert traced() < 2 * 256 * 256 * 8 * 8  # a handful of 256 x 256 matrices, no more


def _told_at(store: ActivationStore, layer: int) -> tuple[Activations, BoolArray]:
    return store.at(TapPoint(layer)), np.array([text.label for text in store.texts])
