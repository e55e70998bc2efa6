"""Drafts as `probes train` would leave them, without its search: parts are dealt, one probe is fitted on training rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probes.activations.store import ActivationStore
from probes.data.parts import assign_parts
from probes.draft import Draft
from probes.kinds.registry import make_estimator
from probes.manifest import Aggregation
from probes.quality.calibration import calibrate
from probes.stages import Part, Training
from sidecar.types import BoolArray, TapPoint

MEAN = Aggregation(kind="mean")
TAP = TapPoint(1)


def fitted_draft(
    folder: Path,
    store: ActivationStore,
    *,
    kind: str = "logistic",
    aggregation: Aggregation = MEAN,
    labels: BoolArray | None = None,
    where: TapPoint = TAP,
) -> Draft:
    """Fit on TRAIN at ``where``; labels: others than the true ones of all texts, to learn from."""
    parts = assign_parts(store.texts, 0, outside=frozenset(store.facts.outside))
    rows = [at for at, part in enumerate(parts) if part is Part.TRAIN]
    truth = np.array([text.label for text in store.texts]) if labels is None else labels
    estimator = make_estimator(kind, aggregation, 0.01).fit(store.at(where, rows), truth[rows])
    training = Training(
        name="planted",
        store=str(store.folder),
        store_digest=store.digest,
        kind=kind,
        tap_point=where.name,
        aggregation=aggregation,
        strength=0.01,
        seed=0,
        parts=parts,
        select_auroc=0.5,
        candidates=(),
        seconds=0.0,
    )
    draft = Draft(folder)
    draft.write_trained(training, estimator.served_)
    return draft


def calibrated_draft(folder: Path, store: ActivationStore, **changes: object) -> Draft:
    """The same after calibration with its defaults."""
    draft = fitted_draft(folder, store, **changes)  # type: ignore[arg-type]
    draft.write(calibrate(draft, store))
    return draft
