"""An isotonic calibration from the rows that it is fitted on to the sidecar that applies it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from probes.activations.store import ActivationStore
from probes.artifact import load_artifact
from probes.draft import Draft
from probes.isotonic import along
from probes.manifest import KNOTS
from probes.quality.calibration import calibrate, speaks_of
from probes.quality.measures import ece
from probes.quality.rows import rows_of, scores_of
from probes.quality.scaling import Method, fit_scaling, probabilities, thinned
from probes.quality.thresholds import fires
from probes.release.compare import Pair, Side, fires_at
from probes.release.pack import pack
from probes.release.realign import as_json, propose
from probes.release.transfer import export_probe
from probes.stages import Part
from tests.lab.drafts import evaluation
from tests.lab.fitted import TAP, fitted_draft
from tests.lab.planted import planted_store
from tests.lab.sidecar_scores import sidecar_scores

SEEN = 150  # test texts that are served one by one


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("many") / "acts", n=5100, width=6, layers=2, strength=1.5)


@pytest.fixture(scope="module")
def draft(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Draft:
    made = fitted_draft(tmp_path_factory.mktemp("draft") / "draft", store)
    made.write(calibrate(made, store, method=Method.ISOTONIC))
    made.write(evaluation())
    return made


@pytest.fixture(scope="module")
def artifact(draft: Draft) -> Path:
    pack(draft.folder, draft.folder.parent / "artifact")
    return draft.folder.parent / "artifact"


def test_it_is_fitted_and_packed_as_a_table_that_an_artifact_can_carry(draft: Draft, artifact: Path) -> None:
    told = draft.calibrated.calibration
    assert told.kind == "isotonic"
    assert 2 <= len(told.knots) <= KNOTS
    assert load_artifact(artifact, root=artifact).manifest.calibration == told
    assert speaks_of(draft.calibrated) is None
    assert draft.calibrated.ece_after < draft.calibrated.ece_before


def test_the_sidecar_tells_the_labs_probabilities_and_decides_as_it_does(
    draft: Draft, artifact: Path, store: ActivationStore
) -> None:
    rows = rows_of(store, draft.training, Part.TEST)
    some = rows.only(np.arange(len(rows)) < SEEN)
    lab = probabilities(draft.calibrated.calibration, scores_of(draft.served, store, (TAP,), some))
    served = sidecar_scores(artifact, store, some.at)
    assert [one.score for one in served] == pytest.approx(lab.tolist(), abs=1e-6)
    judged = some.tokens >= 10  # no signal is judged before its window is full
    decided = fires(draft.calibrated.thresholds, lab, some.tokens)
    assert decided[judged].any()
    assert not decided[judged].all()
    assert [one.flagged for one, is_judged in zip(served, judged, strict=True) if is_judged] == decided[judged].tolist()


@given(st.integers(0, 2**32), st.integers(40, 3000))
def test_a_table_of_few_knots_is_near_the_whole_curve(seed: int, rows: int) -> None:
    """Dropping corners costs less than rows of that number could tell."""
    from sklearn.isotonic import IsotonicRegression

    random = np.random.default_rng(seed)
    scores = random.standard_normal(rows) * 3
    labels = random.random(rows) < expit(scores)
    found = fit_scaling(Method.ISOTONIC, scores, labels)
    if not found.fitted:
        return
    knots = np.array(found.calibration.knots)
    assert len(knots) <= KNOTS
    whole = IsotonicRegression(y_min=0, y_max=1).fit(scores, labels).predict(scores)
    assert np.abs(along(knots, scores) - whole).mean() < 0.1 / rows**0.5
    assert ece(along(knots, scores), labels) < ece(whole, labels) + 0.2 / rows**0.5  # half of a share's standard error


@given(st.lists(st.floats(0, 1), min_size=2, max_size=80), st.integers(2, 20))
def test_thinning_keeps_the_ends_the_order_and_no_more_than_asked(shares: list[float], most: int) -> None:
    kept = thinned(np.arange(len(shares), dtype=float), np.sort(shares), most)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == min(most, len(shares))
    assert (kept[0], kept[-1]) == (0, len(shares) - 1)


def test_corners_that_lie_on_a_line_go_first() -> None:
    at = np.arange(5.0)
    assert thinned(at, np.array([0.0, 0.1, 0.2, 0.3, 1.0]), 3).tolist() == [0, 3, 4]


def test_another_config_moves_the_table_and_the_decisions_come_back(
    draft: Draft, artifact: Path, store: ActivationStore
) -> None:
    about = load_artifact(artifact, root=artifact).manifest
    rows = rows_of(store, draft.training, Part.TEST)
    before = scores_of(draft.served, store, (TAP,), rows)
    sides = [_side(about, scores, rows.tokens) for scores in (before, before * 3 - 4)]
    pair = Pair(rows.labels, rows.groups, tuple(text.key for text in rows.texts), *sides, ())
    proposal = propose(pair, about)
    again = probabilities(proposal.calibration, before * 3 - 4)
    assert again == pytest.approx(sides[0].probability, abs=1e-6)
    assert proposal.fires_realigned == pytest.approx(proposal.fires_reference, abs=2e-3)
    assert len(as_json(proposal)["calibration"]["knots"]) == len(about.calibration.knots)


def _side(about, scores, tokens) -> Side:
    told = probabilities(about.calibration, scores)
    return Side(scores, told, tokens, fires_at(about.threshold, told, tokens))


def test_a_format_with_one_threshold_gets_the_score_at_which_the_table_crosses_it(
    draft: Draft, artifact: Path, store: ActivationStore, tmp_path: Path
) -> None:
    import json

    export_probe(artifact, "npz", tmp_path / "file")
    with np.load(tmp_path / "file", allow_pickle=False) as file:
        limit = json.loads(str(file["metadata"]))["threshold"]
    about = load_artifact(artifact, root=artifact).manifest
    rows = rows_of(store, draft.training, Part.TEST)
    scores = scores_of(draft.served, store, (TAP,), rows)
    decided = probabilities(about.calibration, scores) > about.threshold.probability
    assert 0 < decided.sum() < len(decided)
    assert np.array_equal(expit(scores) > limit, decided)
