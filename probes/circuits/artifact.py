"""A circuit's artifact: its manifest, and one matrix of readout columns for each tap point that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probes.circuits.manifest import SCHEMA, CircuitManifest, Place, ReadoutKind
from probes.envelope import Form
from probes.home import Fit, moved_from
from probes.tensorfile import dump_tensors, parse_tensors
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import Evidence, FloatArray, ModelIdentity, TapPoint

Columns = dict[TapPoint, FloatArray]


@dataclass(frozen=True, slots=True)
class Circuit:
    """columns: by tap point, float32 [width, K]: a row's readings are row @ columns; places without columns are left out.

    digest: hex SHA-256 of both files, the identity that hot reload compares.
    """

    manifest: CircuitManifest
    columns: Mapping[TapPoint, FloatArray]
    digest: str


def load_circuit(folder: Path, *, root: Path) -> Circuit:
    """Read, check and return the circuit in ``folder``, which lies in ``root``; nothing in it is ever run.

    Raises ArtifactError with the reason and a text for people that quotes no path beyond the entry's own name.
    """
    found = FORM.open(folder, root=root)
    return Circuit(found.manifest, found.weights, found.digest)


def save_circuit(
    folder: Path, manifest_fields: Mapping[str, Any], columns: Mapping[TapPoint, FloatArray]
) -> CircuitManifest:
    """Write a circuit that `load_circuit` accepts, or write nothing. The same input gives the same bytes.

    manifest_fields: the manifest without ``schema`` and ``content_digest``, which are added. Raises ArtifactError.
    """
    return FORM.save(folder, manifest_fields, dump_tensors({where.name: each for where, each in columns.items()}))


def fit(manifest: CircuitManifest, model: ModelIdentity) -> Fit:
    """Judge a circuit against the model served: its own evidence, or stale; the reason if it may not page.

    Raises ArtifactError(OTHER_MODEL), naming both sides, for another architecture, number of layers, width or tokenizer.
    Another or unknown weights digest, dtype, quantisation or engine is stale: shown, never paging.
    """
    if moved := moved_from(manifest.name, manifest.model, manifest.width, model):
        return Fit(Evidence.STALE, f"the serving configuration has moved: {moved}")
    if manifest.findings is None:
        return Fit(manifest.evidence, "it was not validated")
    return Fit(manifest.evidence, f"it failed its gates: {', '.join(manifest.failed)}" if manifest.failed else "")


def _parse(manifest: CircuitManifest, data: bytes) -> Columns:
    places = {place.tap_point: place for place in manifest.places if place.columns}

    def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, got in shapes.items():
            if got != (want := (places[name].width, places[name].columns)):
                text = f"the manifest wants {name} of shape {want}, the file has {got}"
                raise ArtifactError(ArtifactReason.BAD_SHAPE, text)

    tensors = parse_tensors(data, frozenset(places), check_shapes)
    for name, columns in tensors.items():
        _check_columns(manifest, places[name], columns)
    return {TapPoint.parse(name): columns for name, columns in tensors.items()}


def _check_columns(manifest: CircuitManifest, place: Place, columns: FloatArray) -> None:
    if not columns.any(axis=0).all():
        raise ArtifactError(
            ArtifactReason.BAD_WEIGHTS, f"a column of {place.tap_point} is all zeros and can read nothing"
        )
    for one in manifest.watched:
        if one.readout is None or one.what.where != place.where or not one.readout.columns:
            continue
        own = columns[:, one.readout.first : one.readout.first + one.readout.columns]
        span = one.what.span(place.width, place.heads or 1)
        if own[: span.start].any() or own[span.stop :].any():
            raise ArtifactError(ArtifactReason.BAD_WEIGHTS, f"{one.node}: a column reads beyond the node")
        if one.readout.kind is ReadoutKind.INDEX and not (np.count_nonzero(own) == 1 and own.max() == 1):
            raise ArtifactError(ArtifactReason.BAD_WEIGHTS, f"{one.node}: an index reads one coordinate as it is")


FORM: Form[CircuitManifest, Columns] = Form(SCHEMA, CircuitManifest, _parse)
