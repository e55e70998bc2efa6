"""Training finds what was planted in states, where it was planted, and never looks at rows it must not see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.calibrate import Platt, fit_platt, threshold_for
from probes.control import Range, fit_control, rows_of
from probes.evaluate import auroc
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import aggregate
from probes.states import States
from probes.train import Choice, choose, fit_direction, pooled, scores, survey
from sidecar.types import BoolArray

WIDTH, TEXTS, PREFIX = 12, 200, 5
MEAN, LAST = Aggregation(kind=AggregationKind.MEAN), Aggregation(kind=AggregationKind.LAST)


def planted_states(where: str, gap: float, seed: int = 0) -> tuple[States, BoolArray]:
    """Texts of 4-19 rows after a shared beginning, with a labelled shift in every row or in the last row only."""
    rng = np.random.default_rng(seed)
    labels = rng.random(TEXTS) < 0.5
    lengths = rng.integers(4, 20, TEXTS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tails = rng.standard_normal((starts[-1], WIDTH)).astype(np.float32)
    for index, label in enumerate(labels):
        rows = (
            slice(starts[index], starts[index + 1])
            if where == "all"
            else slice(starts[index + 1] - 1, starts[index + 1])
        )
        tails[rows, 3] += gap * (1 if label else -1)
    prefix = rng.standard_normal((PREFIX, WIDTH)).astype(np.float32)
    prefix[0] = 20000.0  # position 0 is no row like the others
    return States(prefix, tails, tuple(starts.tolist())), labels


def test_folding_the_standardisation_in_changes_no_score() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.4
    features = rng.standard_normal((300, WIDTH)) * np.logspace(-3, 3, WIDTH) + 100.0
    features[:, 2] += labels
    direction = fit_direction(features, labels, 0.1)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    wanted = plain.fit(features, labels).decision_function(features)
    # float32 carries 7 digits of readings whose parts are of the order of 1e5.
    np.testing.assert_allclose(direction.read(features), wanted, atol=0.05)
    assert np.corrcoef(direction.read(features), wanted)[0, 1] > 0.999


def test_a_column_that_never_changes_is_no_trouble() -> None:
    labels = np.arange(20) % 2 == 0
    features = np.stack([labels.astype(float), np.ones(20)], axis=1)
    assert np.isfinite(fit_direction(features, labels, 1.0).direction).all()


def test_fitting_twice_gives_the_same_bits() -> None:
    states, labels = planted_states("all", 0.3)
    one, two = (fit_direction(pooled(states, range(TEXTS), MEAN), labels, 0.1) for _ in range(2))
    assert one.direction.tobytes() == two.direction.tobytes()
    assert one.offset == two.offset


def test_position_0_is_never_read() -> None:
    states, labels = planted_states("all", 0.5)
    other = States(states.prefix.copy(), states.tails, states.starts)
    other.prefix[0] = -1.0
    direction = fit_direction(pooled(states, range(TEXTS), MEAN), labels, 0.1)
    np.testing.assert_array_equal(pooled(states, range(9), MEAN), pooled(other, range(9), MEAN))
    np.testing.assert_array_equal(scores(states, range(9), direction, MEAN), scores(other, range(9), direction, MEAN))


@pytest.mark.parametrize("kind", [kind for kind in AggregationKind if Aggregation(kind=kind).columns == 1])
def test_scores_are_aggregated_readings_of_each_texts_rows(kind: AggregationKind) -> None:
    states, labels = planted_states("all", 0.5)
    direction = fit_direction(pooled(states, range(TEXTS), MEAN), labels, 0.1)
    aggregation = Aggregation(kind=kind, window=4)
    found = scores(states, [7, 0, 199], direction, aggregation)
    wanted = [aggregate(direction.read(states.text(index)[1:]), aggregation) for index in (7, 0, 199)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(("where", "kind"), [("all", AggregationKind.MEAN), ("last", AggregationKind.LAST)])
def test_survey_and_choice_find_the_layer_and_the_aggregation_that_carry_the_concept(
    where: str, kind: AggregationKind
) -> None:
    gap = 0.3 if where == "all" else 1.0  # so weak that only the right aggregation reads it well
    gaps = {4: 0.0, 6: gap, 8: gap}
    made = {layer: planted_states(where, gap, seed=5) for layer, gap in gaps.items()}
    labels = made[4][1]
    states = {layer: of_layer for layer, (of_layer, _) in made.items()}
    choices = survey(states, labels, list(range(150)))
    chosen = choose(choices)
    assert (chosen.layer, chosen.aggregation.kind) == (6, kind)
    nothing = [choice.auroc for choice in choices if choice.layer == 4]
    assert all(abs(value - 0.5) < 0.15 for value in nothing)


def test_survey_looks_at_no_row_that_it_was_not_given() -> None:
    states, labels = planted_states("all", 0.3)
    other = States(states.prefix, states.tails.copy(), states.starts)
    other.tails[states.starts[150] :] = np.nan
    flipped = np.concatenate([labels[:150], ~labels[150:]])
    rows = list(range(150))
    assert survey({2: states}, labels, rows) == survey({2: other}, flipped, rows)


def a_choice(layer: int, value: float, error: float = 0.01, aggregation: Aggregation = MEAN) -> Choice:
    return Choice(layer, aggregation, 0.1, value, error)


def test_choice_is_the_earliest_layer_within_one_standard_error_and_there_the_best() -> None:
    best, near, worse_near = a_choice(14, 0.90), a_choice(10, 0.895), a_choice(10, 0.891, aggregation=LAST)
    assert choose([a_choice(8, 0.88), worse_near, near, a_choice(12, 0.899), best]) is near
    assert choose([a_choice(8, 0.88), best]) is best


def test_calibrated_probabilities_are_frequencies() -> None:
    rng = np.random.default_rng(0)
    readings = rng.normal(size=20000)
    labels = rng.random(20000) < Platt(2.0, -1.0)(readings)
    found = fit_platt(readings, labels)
    assert found.scale == pytest.approx(2.0, abs=0.1)
    assert found.offset == pytest.approx(-1.0, abs=0.1)


def test_a_probe_that_reads_backwards_is_not_calibrated() -> None:
    with pytest.raises(ValueError, match="do not rise"):
        fit_platt(np.arange(10.0), np.arange(10) < 5)


def test_threshold_counts_benign_rows_only() -> None:
    readings, labels = np.linspace(-3, 3, 400), np.arange(400) >= 200
    found = threshold_for(Platt(1.0, 0.0), readings, labels, 0.05)
    assert found.rows == 200
    assert found.value < 0.5


def layered(count: int, seed: int) -> dict[int, npt.NDArray[np.float64]]:
    """Rows of five blocks: the same tokens, moved a little further by every block."""
    rng = np.random.default_rng(seed)
    tokens, step = rng.standard_normal((count, WIDTH)), np.linspace(0.4, 2.0, WIDTH)
    return {layer: tokens + layer * step + 0.1 * rng.standard_normal((count, WIDTH)) for layer in range(6, 11)}


def test_control_reads_its_own_block_in_range_and_others_out_of_it() -> None:
    control = fit_control(layered(2000, seed=0), 8)
    held_out = layered(2000, seed=1)
    outside = {layer: control.range.outside(control.direction.read(rows)) for layer, rows in held_out.items()}
    assert outside[8] < 0.02
    assert outside[6] > 0.95
    assert outside[10] > 0.95


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 5.0])
def test_what_is_not_in_range_is_outside(value: float) -> None:
    assert Range(-1.0, 1.0).outside(np.array([0.0, -1.0, 1.0, value])) == 0.25


def test_rows_of_a_control_leave_out_position_0() -> None:
    states, _ = planted_states("all", 0.0)
    assert np.abs(rows_of(states, [0, 1])).max() < 100
    assert len(rows_of(states, [0, 1])) == states.starts[2] + 2 * (PREFIX - 1)


def test_planted_concept_is_read_on_rows_never_seen() -> None:
    states, labels = planted_states("all", 1.0)
    direction = fit_direction(pooled(states, range(100), MEAN), labels[:100], 0.1)
    assert auroc(scores(states, range(100, TEXTS), direction, MEAN), labels[100:]) > 0.9
