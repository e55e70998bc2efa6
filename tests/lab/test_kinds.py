"""One conformance suite for every kind of probe: a new kind is one line in the registry, and these claims hold for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from probes.auroc import auroc
from probes.errors import LabError
from probes.kinds.base import ProbeEstimator
from probes.kinds.beside import Beside
from probes.kinds.registry import KINDS, make_estimator
from probes.kinds.rows import Texts
from probes.manifest import Aggregation, AggregationKind
from probes.weights import dump_weights, parse_weights
from tests.lab.arrays import planted

LEARN, HELD_OUT = planted(seed=1), planted(seed=2)


def _halves(texts: Texts) -> Texts:
    return Beside([[np.asarray(text)[:, :7] for text in texts], [np.asarray(text)[:, 7:] for text in texts]])


EVERY: dict[str, tuple[Callable[[], ProbeEstimator], Callable[[Texts], Texts]]] = {
    **{name: (kind, list) for name, kind in KINDS.items()},
    "logistic over two tap points": (KINDS["logistic"], _halves),
    "attention over two tap points": (KINDS["attention"], _halves),
}


@pytest.fixture(params=EVERY)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str) -> ProbeEstimator:
    return EVERY[kind][0]()


def fit(kind: str, texts: Texts = LEARN.texts, labels: Any = LEARN.labels) -> ProbeEstimator:
    return make(kind).fit(EVERY[kind][1](texts), labels)


def test_the_constructor_stores_and_a_clone_has_the_same_parameters(kind: str) -> None:
    made = make(kind).set_params(strength=0.25)
    copy = clone(made)
    assert copy is not made
    assert copy.get_params() == made.get_params() == {**make(kind).get_params(), "strength": 0.25}
    assert {"aggregation", "strength"} <= set(made.get_params())
    assert vars(made) == made.get_params()


def test_fit_gives_back_the_estimator_and_leaves_what_will_be_served(kind: str) -> None:
    made = make(kind)
    assert made.fit(EVERY[kind][1](LEARN.texts), LEARN.labels) is made
    assert made.n_features_in_ == 12
    assert made.classes_.tolist() == [False, True]
    assert made.served_.aggregation == made.aggregation
    assert made.served_.directions.shape == (12, made.aggregation.columns)
    parse_weights(dump_weights(made.served_.directions, made.served_.offsets))


def test_a_planted_direction_is_found(kind: str) -> None:
    made = fit(kind)
    assert LEARN.cosine(made.served_.directions) > 0.9
    scores = made.decision_function(EVERY[kind][1](HELD_OUT.texts))
    assert scores.dtype == np.float64
    assert auroc(scores, HELD_OUT.labels) > 0.97


def test_shuffled_labels_teach_nothing(kind: str) -> None:
    found = []
    for seed in range(6):
        nothing, others = planted(seed=seed, shuffled=True, strength=0.0), planted(seed=seed + 50, strength=0.0)
        made = fit(kind, nothing.texts, nothing.labels)
        found.append(auroc(made.decision_function(EVERY[kind][1](others.texts)), others.labels))
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)  # six of 120 texts: a standard error of .022


def test_the_score_is_what_served_gives(kind: str) -> None:
    made, texts = fit(kind), EVERY[kind][1](HELD_OUT.texts)
    assert np.array_equal(made.decision_function(texts), made.served_.scores(texts))


def test_probabilities_and_classes_follow_the_score(kind: str) -> None:
    made, texts = fit(kind), EVERY[kind][1](HELD_OUT.texts)
    scores, shares = made.decision_function(texts), made.predict_proba(texts)
    assert shares.shape == (len(scores), 2)
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.array_equal(shares[:, 1] > 0.5, scores > 0)
    assert np.array_equal(made.predict(texts), scores > 0)
    assert made.score(texts, HELD_OUT.labels) == np.mean((scores > 0) == HELD_OUT.labels)


@pytest.mark.parametrize("names", [(0, 1), (-1, 1), ("no", "yes"), (0.0, 1.0)])
def test_labels_of_any_common_kind_give_the_same_probe(kind: str, names: tuple[Any, Any]) -> None:
    named = [names[int(label)] for label in LEARN.labels]
    made = fit(kind, labels=named)
    assert np.array_equal(made.served_.directions, fit(kind).served_.directions)
    assert made.classes_.tolist() == list(names)
    assert set(made.predict(EVERY[kind][1](HELD_OUT.texts)).tolist()) == set(names)


def test_a_second_fit_gives_the_same_bytes(kind: str) -> None:
    first, made = fit(kind).served_, fit(kind)
    second = made.fit(EVERY[kind][1](LEARN.texts), LEARN.labels).served_
    assert first.directions.tobytes() == second.directions.tobytes()
    assert first.offsets.tobytes() == second.offsets.tobytes()


def test_fit_leaves_its_input_as_it_was(kind: str) -> None:
    before = [text.copy() for text in LEARN.texts]
    for text in LEARN.texts:
        text.setflags(write=False)
    fit(kind)
    assert all(np.array_equal(one, other) for one, other in zip(before, LEARN.texts, strict=True))


def test_the_unit_of_a_coordinate_does_not_matter(kind: str) -> None:
    """A residual stream has coordinates a thousand times larger than others, and far from 0."""
    scale, shift = np.ones(12, np.float32), np.zeros(12, np.float32)
    scale[3], shift[3] = 512.0, 8192.0
    moved = [text * scale + shift for text in LEARN.texts]
    scores = fit(kind).decision_function(EVERY[kind][1](LEARN.texts))
    assert np.corrcoef(scores, fit(kind, moved).decision_function(EVERY[kind][1](moved)))[0, 1] > 0.99


def test_strength_is_followed(kind: str) -> None:
    weak, strong = (make(kind).set_params(strength=strength) for strength in (1e-4, 10.0))
    texts = EVERY[kind][1](LEARN.texts)
    low, high = (one.fit(texts, LEARN.labels).served_.directions[:, 0] for one in (weak, strong))
    assert not np.allclose(low / np.linalg.norm(low), high / np.linalg.norm(high), atol=1e-3)


def test_near_duplicates_of_a_text_count_for_little(kind: str) -> None:
    """Sixty copies of one mislabelled text turn a fit that takes them for sixty texts, and not one that knows better."""
    wrong = -8 * np.ones((10, 1), np.float32) * LEARN.direction.astype(np.float32) + np.float32(0.1)
    texts = EVERY[kind][1]([*LEARN.texts, *[wrong] * 60])
    labels = np.append(LEARN.labels, [True] * 60)
    groups = [""] * len(LEARN.texts) + ["copies"] * 60
    test = EVERY[kind][1](HELD_OUT.texts)
    fooled, warned = (make(kind).fit(texts, labels, told).decision_function(test) for told in (None, groups))
    assert auroc(warned, HELD_OUT.labels) >= auroc(fooled, HELD_OUT.labels)
    assert not np.allclose(fooled, warned)


def test_an_estimator_that_was_not_fitted_says_so(kind: str) -> None:
    with pytest.raises(NotFittedError):
        make(kind).decision_function(EVERY[kind][1](HELD_OUT.texts))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused_by_its_text(kind: str, value: float) -> None:
    texts = [text.copy() for text in LEARN.texts]
    texts[17][3, 5] = value
    with pytest.raises(LabError, match=r"text 17: a state is NaN or infinite, in row 3"):
        fit(kind, texts)
    made = fit(kind)
    with pytest.raises(LabError, match=r"text 17: "):
        made.decision_function(EVERY[kind][1](texts))


def test_widths_that_differ_are_refused_by_their_text(kind: str) -> None:
    texts = [*LEARN.texts[:-1], LEARN.texts[-1][:, :-1]]
    with pytest.raises(LabError, match=r"text 119: its states are \d+ wide, want"):
        fit(kind, texts)
    made = fit(kind)
    with pytest.raises(LabError, match=r"text 0: its states are 11 wide, want 12"):
        made.decision_function([LEARN.texts[0][:, :-1]])


@pytest.mark.parametrize("text", [np.zeros((0, 12)), np.zeros(12), np.zeros((1, 2, 6))])
def test_a_text_that_is_no_rows_of_states_is_refused(text: np.ndarray[Any, Any]) -> None:
    with pytest.raises(LabError, match=r"text 1: want rows of states"):
        KINDS["logistic"]().fit([LEARN.texts[0], text], [0, 1])


def test_bad_labels_are_refused(kind: str) -> None:
    for labels in ([True] * 120, [0, 1, 2] * 40, [float("nan"), 1.0] * 60):
        with pytest.raises(LabError):
            fit(kind, labels=labels)
    with pytest.raises(LabError, match="120 texts and 119 labels"):
        fit(kind, labels=LEARN.labels[:-1])


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(kind: str, strength: float) -> None:
    with pytest.raises(LabError, match="strength must be"):
        make(kind).set_params(strength=strength).fit(EVERY[kind][1](LEARN.texts), LEARN.labels)


def test_no_texts_are_refused(kind: str) -> None:
    with pytest.raises(LabError):
        make(kind).fit([], [])


def test_states_that_do_not_differ_are_refused(kind: str) -> None:
    with pytest.raises(LabError, match="nothing"):
        fit(kind, [np.ones((3, 12), np.float32)] * 120)


@pytest.mark.parametrize("aggregation", AggregationKind)
def test_an_aggregation_is_taken_or_refused_as_the_kind_says(kind: str, aggregation: AggregationKind) -> None:
    made = make(kind).set_params(aggregation=Aggregation(kind=aggregation))
    if aggregation in made.accepts:
        made.fit(EVERY[kind][1](LEARN.texts), LEARN.labels)
        assert auroc(made.decision_function(EVERY[kind][1](LEARN.texts)), LEARN.labels) > 0.9
    else:
        with pytest.raises(LabError, match=f"cannot be scored by {aggregation.value}"):
            made.fit(EVERY[kind][1](LEARN.texts), LEARN.labels)


def test_what_is_tried_by_default_is_accepted_and_every_aggregation_has_a_kind(kind: str) -> None:
    made = type(make(kind))
    assert {one.kind for one in made.aggregations} <= made.accepts
    assert made.strengths == tuple(sorted(made.strengths))
    assert frozenset().union(*(one.accepts for one in KINDS.values())) == frozenset(AggregationKind)


@pytest.mark.parametrize("name", KINDS)
def test_scikit_learn_can_cross_validate_it(name: str) -> None:
    from sklearn.model_selection import cross_val_score

    found = cross_val_score(KINDS[name](), LEARN.texts, LEARN.labels, cv=3, scoring="roc_auc")
    assert found.min() > 0.9


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(LabError, match=r"no kind 'svm'; there are: logistic, mass_mean"):
        make_estimator("svm", Aggregation(kind=AggregationKind.MEAN), 1.0)


@pytest.mark.parametrize("kind", ["attention", "max_rolling_attention", "multimax"])
def test_the_seed_says_which_optimum(kind: str) -> None:
    aggregation = KINDS[kind].aggregations[-1]
    one, same, other = (
        make_estimator(kind, aggregation, 0.1, seed).fit(LEARN.texts, LEARN.labels).served_.directions
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["logistic", "attention", "multimax"])
def test_over_two_tap_points_readings_are_added_up_before_they_are_aggregated(kind: str) -> None:
    from probes.pooling import aggregate

    texts = Beside([[text[:, :6] for text in LEARN.texts], [text[:, 6:] for text in LEARN.texts]])
    made = KINDS[kind]().fit(texts, LEARN.labels)
    first, second = made.served_.apart(2)
    by_hand = [aggregate(first.read(text[:, :6]) + second.read(text[:, 6:]), made.aggregation) for text in LEARN.texts]
    assert np.allclose(by_hand, made.decision_function(texts))
    with pytest.raises(LabError, match="not of 5 tap points"):
        made.served_.apart(5)


def test_tap_points_of_other_texts_cannot_stand_beside_each_other() -> None:
    with pytest.raises(LabError, match="120, 119 texts"):
        Beside([LEARN.texts, LEARN.texts[1:]])
    beside = Beside([LEARN.texts, [text[1:] for text in LEARN.texts]])
    with pytest.raises(LabError, match="text 4: tap points have"):
        beside[4]


def _held_out(kind: str, rows: Any, strength: float, aggregation: Aggregation | None = None) -> float:
    learn, test = (planted(240, rows=rows, strength=strength, seed=seed) for seed in (11, 12))
    chosen = KINDS[kind].aggregations[0] if aggregation is None else aggregation
    made = make_estimator(kind, chosen, 0.1).fit(learn.texts, learn.labels)
    return auroc(made.decision_function(test.texts), test.labels)


@pytest.mark.parametrize("kind", ["logistic", "mass_mean"])
def test_what_only_the_last_token_shows_is_found_by_last_and_not_by_mean(kind: str) -> None:
    last, mean = (Aggregation(kind=one) for one in (AggregationKind.LAST, AggregationKind.MEAN))
    assert _held_out(kind, "last", 3.0, last) > 0.95
    assert _held_out(kind, "last", 3.0, mean) < 0.75


@pytest.mark.parametrize("kind", ["attention", "max_rolling_attention", "multimax"])
def test_a_spike_in_one_token_is_found_by_kinds_that_look_for_it(kind: str) -> None:
    assert _held_out(kind, "one", 6.0) > 0.97
    assert _held_out("logistic", "one", 6.0) < 0.9


def test_a_spike_in_one_token_does_not_fire_coherence_and_does_fire_a_maximum() -> None:
    spiked = planted(60, rows="one", strength=40.0, seed=9)
    for kind, fires in (("coherence", False), ("multimax", True)):
        made = KINDS[kind](strength=0.1).fit(LEARN.texts, LEARN.labels)
        usual = made.decision_function(LEARN.texts)[LEARN.labels].mean()  # of texts that show the concept throughout
        share = np.mean(made.decision_function(spiked.texts)[spiked.labels] > usual)
        assert share >= 0.95 if fires else share <= 0.05


def test_softmax_weighting_finds_what_few_tokens_show_better_than_even_weights() -> None:
    aggregation = Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN, window=1)
    assert _held_out("softmax_token", "one", 6.0, aggregation) > _held_out("token", "one", 6.0, aggregation)
