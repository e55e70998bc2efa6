"""Make a shipped probe: collect, choose, train, calibrate, test, save. The same inputs give the same files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.artifact import save_artifact
from probes.baselines import baseline_scores
from probes.calibrate import Platt, fit_platt, threshold_for
from probes.collect import LabModel, chat_ids, collect
from probes.datasets import Split, data_digest
from probes.evaluate import auroc, compare, shuffled_auroc
from probes.manifest import Manifest
from probes.material import Material, gather
from probes.prompts import EVERYDAY
from probes.recipes import LAYERS, LICENCE, TARGET_FPR, TEXT_LIMIT, VERSION, ProbeRecipe
from probes.states import States
from probes.threshold import BenignThreshold, clopper_pearson
from probes.train import SKIP_POSITIONS, Choice, Direction, choose, fit_direction, pooled, scores, survey
from probes.verdict import CACHED_TOKENS, Findings, evidence_of, verdict_of
from sidecar.types import BoolArray, TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress

Array = npt.NDArray[np.float64]
SEED = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """A probe and its decision rule, ready to be tested."""

    choice: Choice
    direction: Direction
    platt: Platt
    threshold: BenignThreshold

    def readings(self, states: dict[int, States], indices: list[int]) -> Array:
        return scores(states[self.choice.layer], indices, self.direction, self.choice.aggregation)

    def fires(self, readings: Array) -> BoolArray:
        return np.asarray(self.platt(readings) > self.threshold.value)


def build_probe(
    recipe: ProbeRecipe,
    lab: LabModel,
    folder: Path,
    bars: Progress,
    *,
    layers: Sequence[int] = LAYERS,
    limit: int = TEXT_LIMIT,
) -> Manifest:
    """Train, examine and save one probe in ``folder``, at the best of ``layers``, from at most ``limit`` texts."""
    material = gather(lab, recipe.source, layers, bars, limit=limit)
    task = bars.add_task(f"{recipe.name}: choosing, training", total=3)
    trained = train(material)
    bars.update(task, advance=1, description=f"{recipe.name}: baselines, shuffled labels")
    found = examine(trained, material, lab, bars)
    bars.update(task, advance=1, description=f"{recipe.name}: saving")
    fields = binding(lab, trained.choice.layer) | _probe_fields(recipe, material, trained, found)
    offsets = np.array([trained.direction.offset], np.float32)
    manifest = save_artifact(folder, fields, trained.direction.direction[:, None], offsets)
    bars.update(task, advance=1, description=f"{recipe.name}: done")
    return manifest


def train(material: Material) -> Trained:
    """Choose and fit on the training rows, then calibrate and set the threshold on the calibration rows."""
    rows, labels = material.indices(Split.TRAIN), material.labels
    choice = choose(survey(material.states, labels, rows))
    features = pooled(material.states[choice.layer], rows, choice.aggregation)
    direction = fit_direction(features, labels[rows], choice.strength)
    kept = material.indices(Split.CALIBRATE)
    readings = scores(material.states[choice.layer], kept, direction, choice.aggregation)
    platt = fit_platt(readings, labels[kept])
    return Trained(choice, direction, platt, threshold_for(platt, readings, labels[kept], TARGET_FPR))


def examine(trained: Trained, material: Material, lab: LabModel, bars: Progress) -> Findings:
    """Measure on the test rows, beside the baselines and shuffled labels, and on everyday prompts."""
    rows = material.indices(Split.TEST)
    labels, readings = material.labels[rows], trained.readings(material.states, rows)
    rivals = _baselines(material, lab)
    quality = {name: auroc(rival, labels) for name, rival in rivals.items()}
    best = max(quality, key=lambda name: quality[name])
    everyday = collect(lab, [chat_ids(lab, prompt) for prompt in EVERYDAY], sorted(material.states), bars)
    fired = trained.fires(readings)
    return Findings(
        compared=compare(readings, rivals[best], labels, seed=SEED),
        baselines=quality,
        shuffled=_shuffled(trained, material),
        test_rows=len(rows),
        recall=float(fired[labels].mean()),
        false_alarms=float(fired[~labels].mean()),
        everyday=int(trained.fires(trained.readings(everyday, list(range(len(EVERYDAY))))).sum()),
        everyday_prompts=len(EVERYDAY),
        calibrated_tokens=_lengths(trained, material),
        cached_shift=_cached_shift(trained, material, rows),
    )


def binding(lab: LabModel, layer: int) -> dict[str, Any]:
    """Return what every artifact made on this model says about it."""
    model = lab.identity
    return {
        "version": VERSION,
        "licence": LICENCE,
        "tap_point": TapPoint(layer).name,
        "feature_contract": {
            "hook_point": f"output of decoder block {layer}: the residual stream before any norm",
            "width": model.width,
            "token_span": "prompt",
            "skip_positions": SKIP_POSITIONS,
            "chat_template_digest": lab.template_digest,
        },
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "layers": model.layers,
            "weights_digest": model.weights_digest,
            "tokenizer_digest": model.tokenizer_digest,
            "dtype": model.dtype,
            "quantisation": model.quantisation,
            "engine": model.engine,
        },
    }


def _lengths(trained: Trained, material: Material) -> tuple[int, int]:
    states = material.states[trained.choice.layer]
    counts = [len(states.text(index)) for index in material.indices(Split.CALIBRATE)]
    low, high = np.quantile(counts, [0.05, 0.95])
    return round(low), round(high)


def _cached_shift(trained: Trained, material: Material, rows: list[int]) -> float:
    def probabilities(first: int) -> Array:
        states, choice = material.states[trained.choice.layer], trained.choice
        return trained.platt(scores(states, rows, trained.direction, choice.aggregation, first=first))

    return float(np.abs(probabilities(CACHED_TOKENS) - probabilities(SKIP_POSITIONS)).mean())


def _baselines(material: Material, lab: LabModel) -> dict[str, Array]:
    def count_tokens(text: str) -> int:
        return len(lab.tokenizer(text)["input_ids"])

    return baseline_scores(material.of(Split.TRAIN), material.of(Split.TEST), count_tokens)


def _shuffled(trained: Trained, material: Material) -> float:
    """Train as the probe was trained, on labels that mean nothing."""
    choice, rows, held_out = trained.choice, material.indices(Split.TRAIN), material.indices(Split.TEST)
    states, labels = material.states[choice.layer], material.labels
    features = pooled(states, rows, choice.aggregation)

    def fit_and_score(shuffled: BoolArray) -> Array:
        direction = fit_direction(features, shuffled, choice.strength)
        return scores(states, held_out, direction, choice.aggregation)

    return shuffled_auroc(fit_and_score, labels[rows], labels[held_out], seed=SEED)


def _probe_fields(recipe: ProbeRecipe, material: Material, trained: Trained, found: Findings) -> dict[str, Any]:
    counts = " / ".join(str(len(material.indices(split))) for split in Split)
    aggregation = trained.choice.aggregation
    return {
        "kind": "linear_probe",
        "name": recipe.name,
        "description": recipe.description,
        "positive_label": recipe.source.positive,
        "negative_label": recipe.source.negative,
        "evidence": evidence_of(found).value,
        "training_data": {
            "name": f"{recipe.source.name}; train / calibrate / test: {counts}",
            "digest": data_digest(material.examples),
            "rows": len(material.examples),
            "licence": recipe.source.licence,
        },
        "aggregation": {"kind": aggregation.kind.value, "window": aggregation.window},
        "calibration": {"kind": "platt", "scale": trained.platt.scale, "offset": trained.platt.offset},
        "threshold": _threshold_fields(trained.threshold),
        "quality": _quality_fields(found),
    }


def _threshold_fields(threshold: BenignThreshold) -> dict[str, Any]:
    return {
        "probability": threshold.value,
        "target_fpr": TARGET_FPR,
        "measured_fpr": threshold.measured_fpr,
        "fpr_interval": clopper_pearson(threshold.exceeding, threshold.rows),
        "benign_rows": threshold.rows,
        "certified": threshold.certified,
    }


def _quality_fields(found: Findings) -> dict[str, Any]:
    return {
        "test_rows": found.test_rows,
        "auroc": found.compared.auroc,
        "auroc_interval": found.compared.interval,
        "baselines": found.baselines,
        "best_baseline": found.best_baseline,
        "gain": found.compared.gain,
        "gain_interval": found.compared.gain_interval,
        "shuffled_label_auroc": found.shuffled,
        "verdict": verdict_of(found),
    }
