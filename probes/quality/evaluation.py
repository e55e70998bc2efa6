"""How good a probe is on test rows, beside all that could make it look good: text, chance, luck, length, leaks, first layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.draft import Draft
from probes.errors import LabError
from probes.kinds.threads import one_thread
from probes.quality import gates
from probes.quality.bootstrap import Resamples
from probes.quality.calibration import speaks_of
from probes.quality.controls import first_point, left_out, random_control, shuffled_control
from probes.quality.leaks import ablated, telling_words
from probes.quality.lengths import matched_auroc, strata
from probes.quality.measures import brier, curve, ece, operating_point, partial_auroc, prior_weights, reliability
from probes.quality.refit import Refit
from probes.quality.rivals import compared, rival_scores
from probes.quality.rows import Rows, rows_at, rows_of, scores_of
from probes.quality.scaling import probabilities
from probes.quality.thresholds import fires
from probes.serving import Served
from probes.stages import Calibrated, Evaluated, Gate, OperatingPoint, Part, Training
from probes.threshold import clopper_pearson

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]
RATES = (0.001, 0.01, 0.05)
REQUESTS_PER_DAY = 10_000.0
PRIOR = 0.01
STEPS = (
    "text baselines",
    "shuffled labels",
    "random directions",
    "earlier states",
    "other data sets",
    "lengths and words",
)
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tested:
    """A draft with its test rows scored, and all that the comparisons need."""

    training: Training
    calibrated: Calibrated
    served: Served
    store: ActivationStore
    train: Rows
    test: Rows
    scores: Array
    probabilities: Array
    resamples: Resamples
    seed: int

    @property
    def refit(self) -> Refit:
        return Refit(self.training, self.store)


def evaluate(
    draft: Draft,
    store: ActivationStore,
    *,
    requests_per_day: float = REQUESTS_PER_DAY,
    prior: float | None = None,
    seed: int = 0,
    step: Step = lambda _: None,
) -> Evaluated:
    """Measure the draft on its test rows, which nothing was chosen on, and try its gates. Deterministic, on one thread.

    requests_per_day, prior: of what the alerts a day are reckoned; prior, the share of positives there, in (0, 1), is that of
    the calibration if None, or else 1 %. step: told what is done next, one of `STEPS` at a time. Raises LabError if the draft is
    not calibrated, the store is not the one it was trained on, or a part lacks a class.
    """
    began = time.monotonic()
    calibrated = draft.calibrated
    assumed = prior if prior is not None else PRIOR if calibrated.prior is None else calibrated.prior
    if not 0 < assumed < 1 or not requests_per_day > 0:
        raise LabError(
            f"want a prior between 0 and 1 and some requests a day, not {assumed:g} and {requests_per_day:g}"
        )
    with one_thread():
        tested = _test(draft, calibrated, store, seed)
        fields = _measured(tested) | _alerts(tested, requests_per_day, assumed) | _examined(tested, step)
    return Evaluated(**fields, seconds=time.monotonic() - began)


def _test(draft: Draft, calibrated: Calibrated, store: ActivationStore, seed: int) -> Tested:
    training, served = draft.training, draft.served
    test = rows_of(store, training, Part.TEST)
    scores = scores_of(served, store, training.everywhere, test)
    return Tested(
        training=training,
        calibrated=calibrated,
        served=served,
        store=store,
        train=rows_of(store, training, Part.TRAIN),
        test=test,
        scores=scores,
        probabilities=probabilities(calibrated.calibration, scores),
        resamples=Resamples(test.labels, test.groups, seed),
        seed=seed,
    )


def _measured(tested: Tested) -> dict[str, Any]:
    scores, told, labels = tested.scores, tested.probabilities, tested.test.labels
    weights = prior_weights(labels, speaks_of(tested.calibrated))
    return {
        "rows": len(labels),
        "positives": int(labels.sum()),
        "auroc": auroc(scores, labels),
        "auroc_interval": tested.resamples.auroc(scores),
        "partial_auroc": partial_auroc(scores, labels),
        "operating_points": tuple(operating_point(scores, told, labels, rate) for rate in RATES),
        "ece": ece(told, labels, weights),
        "brier": brier(told, labels, weights),
        "curve": curve(scores, labels),
        "reliability": reliability(told, labels, weights),
        "length_strata": strata(scores, tested.test),
        "outside": _outside(tested),
    }


def _alerts(tested: Tested, requests_per_day: float, prior: float) -> dict[str, Any]:
    """What the calibration's thresholds do on test rows, and what that comes to in a day."""
    labels = tested.test.labels
    fired = fires(tested.calibrated.thresholds, tested.probabilities, tested.test.tokens)
    hits, positives = int(fired[labels].sum()), int(labels.sum())
    point = OperatingPoint(
        fpr=float(fired[~labels].mean()),
        threshold=tested.calibrated.thresholds[0].probability,
        tpr=hits / positives,
        tpr_interval=clopper_pearson(hits, positives),
        held=all(one.certified for one in tested.calibrated.thresholds),
    )
    return {
        "fires": point,
        "alerts_per_day": requests_per_day * (prior * point.tpr + (1 - prior) * point.fpr),
        "requests_per_day": requests_per_day,
        "prior": prior,
    }


def _examined(tested: Tested, step: Step) -> dict[str, Any]:
    """Rivals and controls, and the gates that they make."""
    train, test, scores, own = tested.train, tested.test, tested.scores, auroc(tested.scores, tested.test.labels)
    step(STEPS[0])
    texts = rival_scores(train, test)
    rivals = compared(scores, texts, tested.resamples)
    step(STEPS[1])
    shuffled = shuffled_control(tested.refit, train, test, seed=tested.seed)
    step(STEPS[2])
    lucky = random_control(tested.refit, train, test, seed=tested.seed)
    random_best = auroc(lucky, test.labels)
    step(STEPS[3])
    first, first_gates = _first(tested, own)
    step(STEPS[4])
    others = left_out(tested.refit, train, test)
    step(STEPS[5])
    matched = matched_auroc(scores, test, tested.resamples)
    words = telling_words(train)
    left = ablated(scores, texts, test, words, tested.seed) if words else None
    return {
        "rivals": rivals,
        "shuffled_auroc": shuffled,
        "random_best_auroc": random_best,
        "first_layer_auroc": first,
        "left_out": others,
        "length_matched_auroc": None if matched is None else matched.auroc,
        "leak_words": words,
        "leak_ablated_auroc": None if left is None else left.auroc,
        "gates": (
            gates.beats_text(own, rivals),
            gates.shuffled_labels(shuffled),
            gates.random_directions(own, random_best, tested.resamples.gain(scores, lucky)),
            gates.not_length(own, matched, rivals),
            gates.no_leaked_words(own, words, left),
            *first_gates,
            *_gates_of_calibration(tested),
        ),
    }


def _first(tested: Tested, own: float) -> tuple[float | None, tuple[Gate, ...]]:
    """AUROC at the store's lowest tap point, and its gate; nothing if the probe reads the lowest."""
    where = first_point(tested.store, tested.training.everywhere[-1])
    if where is None:
        return None, ()
    scores = tested.refit.scores(tested.train, tested.test, (where,))
    found = auroc(scores, tested.test.labels)
    return found, (gates.first_layer(own, found, tested.resamples.gain(tested.scores, scores), where.name),)


def _gates_of_calibration(tested: Tested) -> tuple[Gate, ...]:
    found, labels = tested.calibrated, tested.test.labels
    fired = fires(found.thresholds, tested.probabilities, tested.test.tokens)
    error = ece(tested.probabilities, labels, prior_weights(labels, speaks_of(found)))
    return (
        gates.calibrated(found, error),
        gates.threshold(found, int(fired[~labels].sum()), int((~labels).sum())),
    )


def _outside(tested: Tested) -> tuple[tuple[str, int, float], ...]:
    """(data set, rows, AUROC) of the probe as it is, on each outside set that has both classes."""
    at = [row for row, part in enumerate(tested.training.parts) if part is Part.OUTSIDE]
    found = []
    for name in sorted({tested.store.texts[row].dataset for row in at}):
        rows = rows_at(tested.store, [row for row in at if tested.store.texts[row].dataset == name])
        if rows.both:
            scores = scores_of(tested.served, tested.store, tested.training.everywhere, rows)
            found.append((name, len(rows), auroc(scores, rows.labels)))
    return tuple(found)
