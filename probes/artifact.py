"""An artifact: a direction with everything that must travel with it. Two files in a folder, never a pickle.

Everything read here was written by someone else: sizes are bounded, each file is read once, and the bytes that were
checked are the bytes that are used.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from probes.manifest import SCHEMA, Manifest, ServingConfig
from probes.safefile import list_names, read_regular
from probes.strictjson import canonical, pretty, strict_object
from probes.weights import LIMIT_BYTES, Weights, dump_weights, parse_weights
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import Evidence, FloatArray, ModelIdentity

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
MANIFEST_LIMIT_BYTES = 256 << 10
FOLDER_LIMIT_ENTRIES = 256
# Formats whose usual readers run code. Their presence means that somebody takes this folder for something else.
PICKLE_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".sav", ".model"}
)
_NOT_DIGESTED = frozenset({"content_digest", "signature"})


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


@dataclass(frozen=True, slots=True)
class Fit:
    """What an artifact is worth on the model that is served, and why."""

    evidence: Evidence
    reason: str


def load_artifact(folder: Path, *, root: Path) -> Artifact:
    """Read, check and return the artifact in ``folder``, which lies in ``root``; nothing in it is ever run.

    Raises ArtifactError with the reason and a text for people that quotes no path beyond the entry's own name.
    """
    refuse_pickles(list_names(folder, root=root, limit=FOLDER_LIMIT_ENTRIES))
    manifest_bytes = read_regular(folder / MANIFEST, root=root, limit_bytes=MANIFEST_LIMIT_BYTES)
    weights_bytes = read_regular(folder / WEIGHTS, root=root, limit_bytes=LIMIT_BYTES)
    fields = strict_object(manifest_bytes, "the manifest", ArtifactReason.BAD_MANIFEST)
    manifest = _validate(fields)
    weights = parse_weights(weights_bytes)
    _check_shape(manifest, weights)
    if content_digest(fields, weights_bytes) != manifest.content_digest:
        raise ArtifactError(ArtifactReason.BAD_DIGEST, "the content is not what content_digest says")
    return Artifact(manifest, weights.directions, weights.offsets, _sha256(manifest_bytes, weights_bytes))


def save_artifact(
    folder: Path, manifest_fields: Mapping[str, Any], directions: FloatArray, offsets: FloatArray
) -> Manifest:
    """Write an artifact that `load_artifact` accepts, or write nothing. The same input gives the same bytes.

    manifest_fields: the manifest without ``schema`` and ``content_digest``, which are added. Each file appears whole or
    not at all; between the two, a reader sees a wrong digest and refuses. Raises ArtifactError as `load_artifact` does.
    """
    weights_bytes = dump_weights(directions, offsets)
    draft = _validate({**manifest_fields, "schema": SCHEMA, "content_digest": "0" * 64})
    fields = draft.model_dump(mode="json", by_alias=True, exclude_none=True)
    fields["content_digest"] = content_digest(fields, weights_bytes)
    manifest = _validate(fields)
    _check_shape(manifest, parse_weights(weights_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / WEIGHTS, weights_bytes)
    _write_whole(folder / MANIFEST, pretty(fields))
    return manifest


def write_signature(folder: Path, signature: str, *, root: Path) -> None:
    """Put a signature into the manifest of the artifact in ``folder``, which was loaded before; nothing else changes.

    Raises ArtifactError.
    """
    data = read_regular(folder / MANIFEST, root=root, limit_bytes=MANIFEST_LIMIT_BYTES)
    fields = strict_object(data, "the manifest", ArtifactReason.BAD_MANIFEST) | {"signature": signature}
    _validate(fields)
    _write_whole(folder / MANIFEST, pretty(fields))


def fit(manifest: Manifest, model: ModelIdentity) -> Fit:
    """Judge an artifact against the model served: its own evidence, or stale; the reason if it may not flag.

    Raises ArtifactError(OTHER_MODEL), naming both sides, if the direction would mean nothing there: another
    architecture, number of layers, width or tokenizer. Another or unknown weights digest, dtype, quantisation or
    engine, or a tokenizer that is not known, is stale: shown, never paging; unless a gate passed at just that config.
    """
    made, served = manifest.model, ServingConfig(model.weights_digest, model.dtype, model.quantisation, model.engine)
    fixed = [
        ("architecture", made.architecture, model.architecture),
        ("layers", made.layers, model.layers),
        ("layers of the encoder", made.encoder_layers or 0, model.encoder_layers),
        ("width", manifest.feature_contract.width, model.width),
    ]
    names = [name.replace("_", " ") for name in ServingConfig._fields]
    moving = list(zip(names, made.serving, served, strict=True))
    tokenizer = ("tokenizer digest", made.tokenizer_digest, model.tokenizer_digest)
    (moving if not model.tokenizer_digest else fixed).append(tokenizer)
    if others := _differences(fixed):
        raise ArtifactError(ArtifactReason.OTHER_MODEL, f"{manifest.name} was made for another model: {others}")
    admitted = bool(model.tokenizer_digest) and any(served == one.serving for one in manifest.admitted)
    if (moved := _differences(moving)) and not admitted:
        return Fit(Evidence.STALE, f"the serving configuration has moved: {moved}")
    return Fit(manifest.evidence, f"it failed its gates: {', '.join(manifest.failed)}" if manifest.failed else "")


def content_digest(fields: Mapping[str, Any], weights_bytes: bytes) -> str:
    """SHA-256 over the manifest's canonical JSON, without its digest and signature, and the weights file."""
    covered = {key: value for key, value in fields.items() if key not in _NOT_DIGESTED}
    return _sha256(canonical(covered), weights_bytes)


def refuse_pickles(names: list[str]) -> None:
    for name in names:
        if Path(name).suffix.lower() in PICKLE_SUFFIXES:
            raise ArtifactError(
                ArtifactReason.PICKLE, f"a {Path(name).suffix.lower()} file has no place in an artifact"
            )


def _sha256(*parts: bytes) -> str:
    """Each part's length goes in first, so that no bytes can move from one part to the next."""
    seen = hashlib.sha256()
    for part in parts:
        seen.update(len(part).to_bytes(8, "little"))
        seen.update(part)
    return seen.hexdigest()


def _validate(fields: Mapping[str, Any]) -> Manifest:
    try:
        # Strict over JSON: "0.5" is not a number, and what is validated is what the digest is taken over.
        return Manifest.model_validate_json(canonical(fields), strict=True)
    except ValidationError as error:
        where = sorted({".".join(str(part) for part in problem["loc"]) or "$" for problem in error.errors()})
        raise ArtifactError(ArtifactReason.BAD_MANIFEST, f"the manifest is wrong at {', '.join(where)[:400]}") from None
    except ValueError:
        raise ArtifactError(ArtifactReason.BAD_MANIFEST, "the manifest holds a value that JSON cannot carry") from None


def _check_shape(manifest: Manifest, weights: Weights) -> None:
    want = (manifest.feature_contract.width, manifest.columns * len(manifest.everywhere))
    got = weights.directions.shape
    if got != want:
        raise ArtifactError(
            ArtifactReason.BAD_SHAPE, f"the manifest wants directions of shape {want}, the file has {got}"
        )


def _differences(pairs: list[tuple[str, Any, Any]]) -> str:
    return "; ".join(
        f"{what}: made on {_short(made)}, served by {_short(served)}" for what, made, served in pairs if made != served
    )


def _short(value: Any) -> str:
    text = str(value)
    return (text[:12] if len(text) == 64 else text[:80]) or "(not known)"


def _write_whole(path: Path, data: bytes) -> None:
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
