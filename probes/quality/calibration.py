"""From a score to a probability and a decision, on the rows that were set aside for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import Calibration
from probes.quality.benign import added_benign, independent
from probes.quality.measures import ece, prior_weights
from probes.quality.rows import rows_of, scores_of
from probes.quality.scaling import EVEN, Method, Scaling, fit_scaling, probabilities
from probes.quality.thresholds import MAX_LIKE, length_thresholds
from probes.stages import Calibrated, Part
from sidecar.types import BoolArray

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]
TARGET_FPR = 0.05
ISOTONIC_ROWS = 1000
_FOLDS = 5


def calibrate(
    draft: Draft,
    store: ActivationStore,
    *,
    fpr: float = TARGET_FPR,
    method: Method = Method.TEMPERATURE,
    benign: ActivationStore | None = None,
    length_buckets: bool | None = None,
    prior: float | None = None,
) -> Calibrated:
    """Fit the calibration on the calibration rows, and the thresholds on their benign ones and those of ``benign``.

    fpr: the share of benign requests that may fire, in (0, 1). length_buckets: a threshold for each range of lengths; None: for
    aggregations that can only rise with the length. prior: the share of positives, in (0, 1), that probabilities are to speak
    of; None: even odds for a temperature, the calibration rows' share for the others. Raises LabError for numbers out of range,
    an isotonic calibration with fewer than `ISOTONIC_ROWS` rows, and a store that does not fit the draft.
    """
    training = draft.training
    _check(fpr, "the false-positive rate")
    if prior is not None:
        _check(prior, "the prior")
    served, everywhere = draft.served, training.everywhere
    rows = rows_of(store, training, Part.CALIBRATE)
    if method is Method.ISOTONIC and len(rows) < ISOTONIC_ROWS:
        raise LabError(f"an isotonic calibration follows every bump of {len(rows)} rows: it takes {ISOTONIC_ROWS}")
    scores = scores_of(served, store, everywhere, rows)
    fitted = fit_scaling(method, scores, rows.labels)
    told = fitted if prior is None or not fitted.fitted else fitted.moved(prior)
    negatives = rows.only(~rows.labels)
    kept = independent(negatives)
    harmless, tokens = scores[~rows.labels][kept], negatives.tokens[kept]
    if benign is not None:
        added = added_benign(store, benign, everywhere)
        added = added.only(independent(added))
        harmless = np.concatenate([harmless, scores_of(served, benign, everywhere, added)])
        tokens = np.concatenate([tokens, added.tokens])
    buckets = training.aggregation.kind in MAX_LIKE if length_buckets is None else length_buckets
    return Calibrated(
        calibration=told.calibration,
        prior=prior if fitted.fitted else None,
        ece_before=_error(probabilities(Calibration(kind="none"), scores), rows.labels, EVEN),
        ece_after=_honest_error(method, scores, rows.labels),
        thresholds=length_thresholds(told(harmless), tokens, fpr, buckets=buckets),
        benign_from="" if benign is None else f"{benign.facts.data_name} ({len(added)} texts)",
        rows=len(rows),
    )


def speaks_of(calibrated: Calibrated) -> float | None:
    """The share of positives that the probabilities speak of; None: that of the calibration rows, whatever it was."""
    if calibrated.prior is not None:
        return calibrated.prior
    return None if calibrated.calibration.kind in {Method.PLATT, Method.ISOTONIC} else EVEN


def _honest_error(method: Method, scores: Array, labels: BoolArray) -> float:
    """Calibration error of rows by calibrations that were fitted on the others, in five turns; before any prior correction."""
    fold = np.empty(len(labels), dtype=np.intp)
    for of_class in (labels, ~labels):
        fold[of_class] = np.arange(of_class.sum()) % _FOLDS
    told, base = np.empty(len(labels)), EVEN
    for turn in range(_FOLDS):
        fitted: Scaling = fit_scaling(method, scores[fold != turn], labels[fold != turn])
        told[fold == turn] = fitted(scores[fold == turn])
        base = fitted.base
    return _error(told, labels, base)


def _error(told: Array, labels: BoolArray, base: float) -> float:
    return ece(told, labels, prior_weights(labels, base))


def _check(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise LabError(f"{name} must lie between 0 and 1, not {share:g}")
