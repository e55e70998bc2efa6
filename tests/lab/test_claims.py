"""What an evaluation says is true where the truth is known, because it was planted."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom, norm

from probes.data.parts import assign_parts
from probes.data.texts import LabelledText, text_key
from probes.manifest import Aggregation
from probes.quality.controls import shuffled_control
from probes.quality.evaluation import evaluate
from probes.quality.gates import SHUFFLED_TOLERANCE, GateName, shuffled_labels
from probes.quality.refit import Refit
from probes.quality.rows import rows_of
from probes.quality.scaling import Method, fit_scaling
from probes.quality.thresholds import fires, length_thresholds
from probes.stages import Evaluated, Part
from probes.threshold import CONFIDENCE
from tests.lab.fitted import calibrated_draft, fitted_draft
from tests.lab.planted import planted_store

DRAWS = 400
ROWS = 600  # of which 60 are negative and calibrate: 59 certify 5 %
WIDTH = 48


def examined(folder: Path, *, rows: int = 400, **planted: Any) -> Evaluated:
    store = planted_store(folder / "acts", n=rows, width=WIDTH, layers=2, **planted)
    return evaluate(calibrated_draft(folder / "draft", store), store)


def failed(found: Evaluated) -> set[str]:
    return {gate.name for gate in found.gates if not gate.passed}


def text_of(found: Evaluated, name: GateName) -> str:
    return next(gate.text for gate in found.gates if gate.name == name)


def test_a_planted_direction_passes_every_gate(tmp_path: Path) -> None:
    found = examined(tmp_path, rows=ROWS, strength=2.5)
    assert failed(found) == set()
    assert {gate.name for gate in found.gates} == set(GateName)
    # A perfect reader of means has d' = 2.5 / sqrt(1 + 1 / tokens), about 2.43: AUROC .957. Learning 48 weights costs a little.
    assert 0.88 < found.auroc < 0.98
    assert found.auroc_interval[0] < found.auroc < found.auroc_interval[1]
    assert all(0.35 < rival.auroc < 0.65 for rival in found.rivals)


def test_where_nothing_is_planted_nothing_is_claimed(tmp_path: Path) -> None:
    found = examined(tmp_path, strength=0.0)
    assert {GateName.BEATS_TEXT, GateName.RANDOM_DIRECTIONS, GateName.NOT_LENGTH} <= failed(found)
    assert found.auroc_interval[0] < 0.5
    assert abs(found.shuffled_auroc - 0.5) < 0.05


def test_a_probe_that_learnt_shuffled_labels_fails_though_the_truth_is_there(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "acts", n=400, width=WIDTH, layers=2, strength=2.5)
    shuffled = np.random.default_rng(0).permutation([text.label for text in store.texts])
    found = evaluate(calibrated_draft(tmp_path / "draft", store, labels=shuffled), store)
    assert {GateName.BEATS_TEXT, GateName.RANDOM_DIRECTIONS} <= failed(found)


def test_a_decoy_that_reads_length_fails_though_it_tells_the_labels(tmp_path: Path) -> None:
    """Long texts are positive four times in five, and the direction reads how long a text is."""
    found = examined(tmp_path, strength=4.0, length="tells")
    assert found.auroc > 0.7
    assert {GateName.NOT_LENGTH, GateName.BEATS_TEXT} <= failed(found)
    assert found.length_matched_auroc is not None
    assert found.length_matched_auroc < 0.65
    assert "may read the length" in text_of(found, GateName.NOT_LENGTH)


def test_where_the_label_is_the_length_nobody_can_say_that_it_is_not(tmp_path: Path) -> None:
    found = examined(tmp_path, strength=4.0, length="is_label")
    assert found.auroc > 0.95
    assert found.length_matched_auroc is None
    assert {GateName.NOT_LENGTH, GateName.BEATS_TEXT} <= failed(found)
    assert next(rival.auroc for rival in found.rivals if rival.name == "length") > 0.99


def test_a_probe_that_reads_a_leaked_word_fails_and_the_word_is_named(tmp_path: Path) -> None:
    found = examined(tmp_path, rows=ROWS, strength=4.0, leak="zebra")
    assert found.auroc > 0.8
    assert found.leak_words == ("zebra",)
    assert GateName.NO_LEAKED_WORDS in failed(found)
    assert found.leak_ablated_auroc is not None
    assert found.leak_ablated_auroc < 0.65
    assert "“zebra”" in text_of(found, GateName.NO_LEAKED_WORDS)


def test_highest_readings_rise_with_length_and_the_shuffled_control_sees_it(tmp_path: Path) -> None:
    """Whatever a direction means, its highest reading tells long texts from short ones: no label is needed for that."""
    store = planted_store(tmp_path / "acts", n=ROWS, width=WIDTH, layers=2, length="is_label")
    highest = Aggregation(kind="max_rolling_mean", window=1)
    training = fitted_draft(tmp_path / "draft", store, aggregation=highest).training
    train, test = (rows_of(store, training, part) for part in (Part.TRAIN, Part.TEST))
    found = shuffled_control(Refit(training, store), train, test, seed=0)
    assert found > 0.5 + SHUFFLED_TOLERANCE
    assert not shuffled_labels(found).passed


def test_certified_thresholds_hold_their_rate_in_95_percent_of_draws_in_every_length_bucket() -> None:
    """The longer a benign text, the higher its score, N(log2 tokens, 1); every length is equally likely."""
    rng = np.random.default_rng(0)
    lengths = np.array([8, 20, 40, 80, 160])
    kept: dict[int, list[bool]] = {}
    for _ in range(DRAWS):
        tokens, labels = rng.choice(lengths, size=500), rng.random(500) < 0.5
        scores = np.log2(tokens) + rng.standard_normal(500) + 2.0 * labels
        scaling = fit_scaling(Method.PLATT, scores, labels)
        found = length_thresholds(scaling(scores[~labels]), tokens[~labels], 0.05, buckets=True)
        assert all(one.certified for one in found)
        limits = logit([one.probability for one in found]) - scaling.calibration.offset
        place = np.searchsorted([one.min_tokens for one in found], lengths, side="right") - 1
        true_rates = norm.sf((limits / scaling.calibration.scale)[place] - np.log2(lengths))
        for at, one in enumerate(found):
            kept.setdefault(one.min_tokens, []).append(bool(true_rates[place == at].mean() <= 0.05))
    assert len(kept) >= 3
    # Fewer than this happens once in a thousand runs of a method that keeps its promise exactly.
    assert all(sum(held) >= binom.ppf(0.001, len(held), CONFIDENCE) for held in kept.values())


def test_one_threshold_for_all_lengths_breaks_its_rate_on_long_texts() -> None:
    """Why there are buckets."""
    rng = np.random.default_rng(1)
    tokens = rng.choice([8, 160], p=[0.9, 0.1], size=1500)
    told = expit(np.log2(tokens) + rng.standard_normal(1500) - 5)
    single, several = (length_thresholds(told, tokens, 0.05, buckets=buckets) for buckets in (False, True))
    long = tokens == 160
    assert fires(single, told, tokens)[long].mean() > 0.3
    assert fires(several, told, tokens)[long].mean() <= 0.05


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("truth", [0.4, 3.0])
def test_a_known_temperature_is_recovered_whatever_the_share_of_positives(share: float, truth: float) -> None:
    """Scores N(-m, 1) and N(m, 1) have log-odds 2 m x score at even odds: the temperature is 2 m."""
    rng = np.random.default_rng(0)
    labels = rng.random(100_000) < share
    scores = rng.standard_normal(100_000) + (truth / 2) * np.where(labels, 1.0, -1.0)
    found = fit_scaling(Method.TEMPERATURE, scores, labels).calibration
    assert found.kind == "temperature"
    assert found.offset == 0.0
    assert found.scale == pytest.approx(truth, rel=0.06)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=4, max_size=60), st.integers(0, 2**31))
def test_an_isotonic_calibration_never_falls(rows: list[tuple[int, bool]], seed: int) -> None:
    scores = np.array([float(score) for score, _ in rows])
    labels = np.array([label for _, label in rows])
    if labels.all() or not labels.any():
        return
    grid = np.sort(np.random.default_rng(seed).uniform(-7, 7, 200))
    told = fit_scaling(Method.ISOTONIC, scores, labels)(grid)
    assert (np.diff(told) >= 0).all()
    assert ((told >= 0) & (told <= 1)).all()


TEXTS = st.lists(
    st.tuples(st.integers(0, 30), st.booleans(), st.sampled_from(["", "a", "b", "c"])), min_size=60, max_size=150
)


@given(TEXTS, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_no_text_and_no_group_is_in_two_parts(rows: list[tuple[int, bool, str]], seed: int) -> None:
    """Duplicates of a text may come under other groups: they are tied all the same."""
    texts = [
        LabelledText(f"text {number}", label, text_key(f"text {number}"), group=group) for number, label, group in rows
    ]
    # Enough others for every part to have both labels.
    texts += [LabelledText(f"more {at}", at % 2 == 0, text_key(f"more {at}")) for at in range(80)]
    parts = assign_parts(texts, seed)
    for one, other in combinations(range(len(texts)), 2):
        tied = texts[one].key == texts[other].key or (texts[one].group and texts[one].group == texts[other].group)
        assert not tied or parts[one] is parts[other]
    assert {Part.TRAIN, Part.SELECT, Part.CALIBRATE, Part.TEST} <= set(parts)
