"""One artifact's scores of the same texts under two serving configs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.artifact import Artifact, load_artifact
from probes.errors import LabError
from probes.kinds.beside import states_at
from probes.manifest import Manifest, ServingConfig, Threshold
from probes.quality.bootstrap import group_numbers
from probes.quality.scaling import probabilities
from probes.serving import Served
from probes.stages import named
from sidecar.errors import ArtifactError
from sidecar.types import BoolArray, IndexArray

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]
# Another of these, and the direction would mean nothing there; of the others a gate says whether they matter.
_SAME = ("architecture", "layers", "tokenizer_digest")


@dataclass(frozen=True, slots=True)
class Side:
    """Scores of one store's texts. scores, probability: float64 [n]; tokens: int [n] that were read; fires: bool [n]."""

    scores: Array
    probability: Array
    tokens: IndexArray
    fires: BoolArray


@dataclass(frozen=True, slots=True)
class Pair:
    """The same texts in the same order. keys: hex digests of the texts; moved: what differs between the configs, in words."""

    labels: BoolArray
    groups: IndexArray
    keys: tuple[str, ...]
    reference: Side
    candidate: Side
    moved: tuple[str, ...]


def read_artifact(folder: Path) -> Artifact:
    """Load a probe that decides something. Raises LabError if it is refused, or is no such probe."""
    try:
        artifact = load_artifact(folder, root=folder)
    except ArtifactError as error:
        raise LabError(f"{folder}: {error.text}") from None
    about = artifact.manifest
    if about.aggregation is None or about.calibration is None or about.threshold is None:
        raise LabError(f"{folder}: a {about.kind.value} decides nothing, so there is nothing to compare")
    return artifact


def compare_stores(artifact: Artifact, reference: ActivationStore, candidate: ActivationStore) -> Pair:
    """Score both stores' texts with one artifact. Raises LabError if the stores do not hold the same texts, or do not fit it."""
    for store in (reference, candidate):
        _must_fit(artifact.manifest, store)
    places = _places(reference, candidate)
    texts = reference.texts
    return Pair(
        labels=np.array([text.label for text in texts], dtype=np.bool_),
        groups=group_numbers([text.group for text in texts]),
        keys=tuple(text.key for text in texts),
        reference=_side(artifact, reference, range(len(texts))),
        candidate=_side(artifact, candidate, places),
        moved=_moved(reference, candidate),
    )


def fires_at(threshold: Threshold, probability: Array, tokens: IndexArray) -> BoolArray:
    """Whether each request is over the threshold for its length, bool [n]."""
    starts = np.array([0, *(bucket.min_tokens for bucket in threshold.buckets)])
    limits = np.array([threshold.probability, *(bucket.probability for bucket in threshold.buckets)])
    return np.asarray(probability > limits[np.searchsorted(starts, tokens, side="right") - 1])


def _side(artifact: Artifact, store: ActivationStore, places: range | list[int]) -> Side:
    about = artifact.manifest
    assert about.calibration is not None
    assert about.threshold is not None
    scores = Served.of(artifact).scores(states_at(store, about.everywhere, places))
    if not np.isfinite(scores).all():
        bad = places[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise LabError(f"{store.folder}: {store.places[bad]} has no finite score at {named(about.everywhere)}")
    probability, tokens = probabilities(about.calibration, scores), store.lengths[list(places)].astype(np.intp)
    return Side(scores, probability, tokens, fires_at(about.threshold, probability, tokens))


def _must_fit(about: Manifest, store: ActivationStore) -> None:
    facts, wanted = store.facts, about.feature_contract
    model = [(name.replace("_", " "), getattr(about.model, name), getattr(facts.model, name)) for name in _SAME]
    pairs = [
        *model,
        *(("width", wanted.width, facts.widths.get(where.name, wanted.width)) for where in about.everywhere),
        ("token span", wanted.token_span.value, facts.token_span.value),
        ("skipped positions", wanted.skip_positions, facts.skip_positions),
        ("chat template", wanted.chat_template_digest, facts.chat_template_digest),
    ]
    others = [f"{what}: the artifact has {made}, the store {served}" for what, made, served in pairs if made != served]
    if others:
        raise LabError(f"{store.folder}: the artifact would mean nothing there: {'; '.join(others)}")


def _places(reference: ActivationStore, candidate: ActivationStore) -> list[int]:
    """Where the candidate has each of the reference's texts."""
    where = {text.key: place for place, text in enumerate(candidate.texts)}
    if len(where) != len(candidate.texts):
        raise LabError(f"{candidate.folder}: a text stands in it twice")
    for place, text in enumerate(reference.texts):
        if text.key not in where:
            raise LabError(f"{candidate.folder}: {reference.places[place]} of {reference.folder} is not in it")
        if candidate.texts[where[text.key]].label != text.label:
            raise LabError(
                f"{candidate.folder}: {reference.places[place]} has another label than in {reference.folder}"
            )
    if len(where) > len(reference.texts):
        known = {text.key for text in reference.texts}
        extra = next(place for place, text in enumerate(candidate.texts) if text.key not in known)
        raise LabError(f"{reference.folder}: {candidate.places[extra]} of {candidate.folder} is not in it")
    return [where[text.key] for text in reference.texts]


def _moved(reference: ActivationStore, candidate: ActivationStore) -> tuple[str, ...]:
    pairs = zip(ServingConfig._fields, reference.facts.model.serving, candidate.facts.model.serving, strict=True)
    return tuple(
        f"{name.replace('_', ' ')}: {_short(before)} to {_short(after)}"
        for name, before, after in pairs
        if before != after
    )


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value
