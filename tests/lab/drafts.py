"""Drafts whose stages are written by hand: what is packed and reported is known, whatever training would have found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probes.activations.store import ActivationStore
from probes.draft import Draft
from probes.manifest import Aggregation, Calibration
from probes.serving import Served
from probes.stages import (
    Calibrated,
    Candidate,
    Evaluated,
    Gate,
    Intervention,
    LengthThreshold,
    OperatingPoint,
    Part,
    Rival,
    Training,
    Validated,
)
from sidecar.types import Evidence
from tests.lab.planted import planted_direction

MEAN = Aggregation(kind="mean")
TAP = "blocks.1.resid_post"
_PARTS = (Part.TRAIN, Part.TRAIN, Part.SELECT, Part.CALIBRATE, Part.TEST)
PASSED = (
    Gate(name="beats_text", passed=True, text="It is ahead of the best text baseline by 0.12 [0.08, 0.16]."),
    Gate(name="shuffled_labels", passed=True, text="On shuffled labels it finds nothing (0.497)."),
    Gate(name="threshold", passed=True, text="At most 5 % of benign texts fire, certified on 216."),
)
USED = (
    Gate(name="behaves", passed=True, text="The model's own answers tell the labels apart: AUROC 0.820."),
    Gate(name="needed", passed=True, text="Without it the model answers worse, more than without random directions."),
    Gate(name="sufficient", passed=True, text="Setting it turns the model's answers."),
)
NOT_USED = (*USED[:1], Gate(name="needed", passed=False, text="It is not shown that the model needs the direction."))
FAILED = Gate(
    name="not_length", passed=False, text="Among texts of like length its AUROC falls to 0.541: it reads length."
)


def make_draft(
    folder: Path,
    store: ActivationStore,
    /,
    *,
    evaluated: dict[str, Any] | None = None,
    validated: dict[str, Any] | None = None,
    stages: str = "cev",
    threshold: float = 0.8,
    **training: Any,
) -> Draft:
    """A draft with the stages of ``stages`` (c, e, v) beyond training; the dicts change fields of the stages."""
    draft, served = Draft(folder), served_probe(store.facts.widths[TAP], training.get("aggregation", MEAN))
    draft.write_trained(trained(store, **training), served)
    if "c" in stages:
        draft.write(calibration(threshold))
    if "e" in stages:
        draft.write(evaluation(**(evaluated or {})))
    if "v" in stages:
        draft.write(validation(**(validated or {})))
    return draft


def served_probe(width: int, aggregation: Aggregation = MEAN, seed: int = 0) -> Served:
    columns = [planted_direction(width)] + [
        planted_direction(width, seed + 1 + at) for at in range(aggregation.columns - 1)
    ]
    return Served(np.stack(columns, axis=1), np.full(len(columns), -0.5, np.float32), aggregation)


def trained(store: ActivationStore, /, **changes: Any) -> Training:
    fields: dict[str, Any] = {
        "name": "planted_truth",
        "description": "Whether the planted direction is there.",
        "positive_label": "there",
        "negative_label": "not there",
        "store": str(store.folder.resolve()),
        "store_digest": store.digest,
        "kind": "logistic",
        "tap_point": TAP,
        "aggregation": MEAN,
        "strength": 0.01,
        "seed": 0,
        "parts": tuple(_PARTS[at % len(_PARTS)] for at in range(len(store.texts))),
        "select_auroc": 0.93,
        "candidates": tuple(
            Candidate(
                tap_point=f"blocks.{layer}.resid_post",
                kind=kind,
                aggregation=MEAN,
                strength=0.01,
                auroc=auroc,
                error=0.02,
            )
            for kind, aurocs in (("logistic", (0.52, 0.93, 0.92)), ("mass_mean", (0.51, 0.9, 0.91)))
            for layer, auroc in enumerate(aurocs)
        ),
        "seconds": 3.2,
    }
    return Training(**{**fields, **changes})


def calibration(threshold: float = 0.8, **changes: Any) -> Calibrated:
    fields: dict[str, Any] = {
        "calibration": Calibration(kind="temperature", scale=1.7),
        "ece_before": 0.08,
        "ece_after": 0.03,
        "thresholds": (limit(0, threshold),),
        "rows": 400,
    }
    return Calibrated(**{**fields, **changes})


def limit(min_tokens: int, probability: float, *, certified: bool = True) -> LengthThreshold:
    return LengthThreshold(
        min_tokens=min_tokens,
        probability=probability,
        target_fpr=0.05,
        measured_fpr=0.023,
        fpr_interval=(0.0076, 0.0532),
        benign_rows=216,
        certified=certified,
    )


def point(fpr: float, tpr: float, *, held: bool = True) -> OperatingPoint:
    return OperatingPoint(fpr=fpr, threshold=0.8, tpr=tpr, tpr_interval=(tpr - 0.05, tpr + 0.05), held=held)


def evaluation(**changes: Any) -> Evaluated:
    fields: dict[str, Any] = {
        "rows": 400,
        "positives": 200,
        "auroc": 0.926,
        "auroc_interval": (0.902, 0.947),
        "partial_auroc": 0.79,
        "operating_points": (point(0.001, 0.2, held=False), point(0.01, 0.43, held=False), point(0.05, 0.71)),
        "fires": point(0.018, 0.57),
        "ece": 0.031,
        "brier": 0.11,
        "alerts_per_day": 231.0,
        "requests_per_day": 10000.0,
        "prior": 0.01,
        "rivals": (
            Rival(name="tfidf_char", auroc=0.807, gain=0.119, gain_interval=(0.082, 0.157)),
            Rival(name="tfidf_word", auroc=0.769, gain=0.157, gain_interval=(0.11, 0.2)),
            Rival(name="length", auroc=0.628, gain=0.298, gain_interval=(0.25, 0.34)),
        ),
        "shuffled_auroc": 0.497,
        "random_best_auroc": 0.71,
        "first_layer_auroc": 0.53,
        "length_strata": (("3-12", 130, 0.91), ("13-20", 140, 0.93), ("21-40", 130, 0.92)),
        "length_matched_auroc": 0.92,
        "outside": (("reviews", 300, 0.838),),
        "leak_words": ("dull", "moving"),
        "leak_ablated_auroc": 0.9,
        "curve": tuple((at / 40, 1 - (1 - at / 40) ** 6) for at in range(41)),
        "reliability": tuple((0.05 + at / 10, min(1.0, 0.03 + at / 9.5), 40) for at in range(10)),
        "gates": PASSED,
        "seconds": 12.0,
    }
    return Evaluated(**{**fields, **changes})


def validation(**changes: Any) -> Validated:
    random = tuple(float(one) for one in np.random.default_rng(0).normal(0, 0.006, 20))
    fields: dict[str, Any] = {
        "behaviour": "log-odds of positive against negative after the text",
        "behaviour_auroc": 0.82,
        "interventions": (
            Intervention(
                name="ablate",
                text="The direction was projected out after block 1.",
                effect=-0.053,
                interval=(-0.08, -0.03),
                random_effects=random,
                p_value=0.048,
                passed=True,
            ),
            Intervention(
                name="steer",
                text="Two standard deviations were added along it.",
                effect=0.12,
                interval=(0.09, 0.15),
                random_effects=random,
                p_value=0.048,
                passed=True,
            ),
        ),
        "not_run": ("patch: no pairs",),
        "evidence": Evidence.USED,
        "gates": USED,
        "seconds": 100.0,
        "budget_s": 300.0,
    }
    return Validated(**{**fields, **changes})
