"""A probe's artifact: a direction with everything that must travel with it. Two files in a folder, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.envelope import MANIFEST, MANIFEST_LIMIT_BYTES, WEIGHTS, Form, content_digest, refuse_pickles
from probes.home import Fit, moved_from, served_as
from probes.manifest import SCHEMA, Manifest
from probes.weights import Weights, dump_weights, parse_weights
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import Evidence, FloatArray, ModelIdentity

__all__ = [
    "MANIFEST",
    "MANIFEST_LIMIT_BYTES",
    "WEIGHTS",
    "Artifact",
    "Fit",
    "content_digest",
    "fit",
    "load_artifact",
    "refuse_pickles",
    "save_artifact",
]


@dataclass(frozen=True, slots=True)
class Artifact:
    """Readings of rows x, float32 [T, D]: ``x @ directions + offsets``, float32 [T, K].

    directions: float32 [D, K]; offsets: float32 [K]; K is `Manifest.columns`, for each tap point in
    turn where there are several; a row's readings are then the sums over them. Any standardisation is folded in.
    digest: hex SHA-256 of both files, the identity that hot reload compares.
    """

    manifest: Manifest
    directions: FloatArray
    offsets: FloatArray
    digest: str


def load_artifact(folder: Path, *, root: Path) -> Artifact:
    """Read, check and return the artifact in ``folder``, which lies in ``root``; nothing in it is ever run.

    Raises ArtifactError with the reason and a text for people that quotes no path beyond the entry's own name.
    """
    found = FORM.open(folder, root=root)
    return Artifact(found.manifest, found.weights.directions, found.weights.offsets, found.digest)


def save_artifact(
    folder: Path, manifest_fields: Mapping[str, Any], directions: FloatArray, offsets: FloatArray
) -> Manifest:
    """Write an artifact that `load_artifact` accepts, or write nothing. The same input gives the same bytes.

    manifest_fields: the manifest without ``schema`` and ``content_digest``, which are added. Each file appears whole or
    not at all; between the two, a reader sees a wrong digest and refuses. Raises ArtifactError as `load_artifact` does.
    """
    return FORM.save(folder, manifest_fields, dump_weights(directions, offsets))


def fit(manifest: Manifest, model: ModelIdentity) -> Fit:
    """Judge an artifact against the model served: its own evidence, or stale; the reason if it may not flag.

    Raises ArtifactError(OTHER_MODEL), naming both sides, if the direction would mean nothing there: another
    architecture, number of layers, width or tokenizer. Another or unknown weights digest, dtype, quantisation or
    engine, or a tokenizer that is not known, is stale: shown, never paging; unless a gate passed at just that config.
    """
    admitted = bool(model.tokenizer_digest) and any(served_as(model) == one.serving for one in manifest.admitted)
    moved = moved_from(manifest.name, manifest.model, manifest.feature_contract.width, model)
    if moved and not admitted:
        return Fit(Evidence.STALE, f"the serving configuration has moved: {moved}")
    return Fit(manifest.evidence, f"it failed its gates: {', '.join(manifest.failed)}" if manifest.failed else "")


def _parse(manifest: Manifest, data: bytes) -> Weights:
    weights = parse_weights(data)
    want = (manifest.feature_contract.width, manifest.columns * len(manifest.everywhere))
    if (got := weights.directions.shape) != want:
        raise ArtifactError(
            ArtifactReason.BAD_SHAPE, f"the manifest wants directions of shape {want}, the file has {got}"
        )
    return weights


FORM: Form[Manifest, Weights] = Form(SCHEMA, Manifest, _parse)
