"""What every artifact is: two files in a folder, a manifest and its weights, under one digest. Never a pickle.

Everything read here was written by someone else: sizes are bounded, each file is read once, and the bytes that were
checked are the bytes that are used.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from probes.manifest.fields import Sealed
from probes.safefile import list_names, read_regular
from probes.strictjson import canonical, pretty, strict_object
from probes.tensorfile import LIMIT_BYTES
from sidecar.errors import ArtifactError, ArtifactReason

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
MANIFEST_LIMIT_BYTES = 256 << 10
FOLDER_LIMIT_ENTRIES = 256
# Formats whose usual readers run code. Their presence means that somebody takes this folder for something else.
PICKLE_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".sav", ".model"}
)
_NOT_DIGESTED = frozenset({"content_digest", "signature"})
M = TypeVar("M", bound=Sealed)
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Opened(Generic[M, W]):
    """Both files, read and checked. digest: hex SHA-256 of their bytes, the identity that hot reload compares."""

    manifest: M
    weights: W
    digest: str


@dataclass(frozen=True, slots=True)
class Form(Generic[M, W]):
    """One kind of artifact. parse: reads weights and holds them against the manifest; raises ArtifactError."""

    schema: str
    manifest: type[M]
    parse: Callable[[M, bytes], W]

    def open(self, folder: Path, *, root: Path) -> Opened[M, W]:
        """Read and check the artifact in ``folder``, which lies in ``root``; nothing in it is ever run.

        Raises ArtifactError with the reason and a text for people that quotes no path beyond the entry's own name.
        """
        refuse_pickles(list_names(folder, root=root, limit=FOLDER_LIMIT_ENTRIES))
        manifest_bytes = _manifest_bytes(folder, root)
        weights_bytes = read_regular(folder / WEIGHTS, root=root, limit_bytes=LIMIT_BYTES)
        fields = strict_object(manifest_bytes, "the manifest", ArtifactReason.BAD_MANIFEST)
        manifest = self.validated(fields)
        weights = self.parse(manifest, weights_bytes)
        if content_digest(fields, weights_bytes) != manifest.content_digest:
            raise ArtifactError(ArtifactReason.BAD_DIGEST, "the content is not what content_digest says")
        return Opened(manifest, weights, _sha256(manifest_bytes, weights_bytes))

    def save(self, folder: Path, manifest_fields: Mapping[str, Any], weights_bytes: bytes) -> M:
        """Write an artifact that `open` accepts, or write nothing. The same input gives the same bytes.

        manifest_fields: the manifest without ``schema`` and ``content_digest``, which are added. Each file appears whole
        or not at all; between the two, a reader sees a wrong digest and refuses. Raises ArtifactError as `open` does.
        """
        draft = self.validated({**manifest_fields, "schema": self.schema, "content_digest": "0" * 64})
        fields = draft.model_dump(mode="json", by_alias=True, exclude_none=True)
        fields["content_digest"] = content_digest(fields, weights_bytes)
        manifest = self.validated(fields)
        self.parse(manifest, weights_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder / WEIGHTS, weights_bytes)
        _write_whole(folder / MANIFEST, pretty(fields))
        return manifest

    def put_signature(self, folder: Path, signature: str, *, root: Path) -> None:
        """Put a signature into the manifest of an artifact that was opened before; nothing else changes. Raises ArtifactError."""
        fields = strict_object(_manifest_bytes(folder, root), "the manifest", ArtifactReason.BAD_MANIFEST)
        fields["signature"] = signature
        self.validated(fields)
        _write_whole(folder / MANIFEST, pretty(fields))

    def validated(self, fields: Mapping[str, Any]) -> M:
        """The manifest that these fields are. Raises ArtifactError(BAD_MANIFEST) naming the fields that are wrong."""
        try:
            # Strict over JSON: "0.5" is not a number, and what is validated is what the digest is taken over.
            return self.manifest.model_validate_json(canonical(fields), strict=True)
        except ValidationError as error:
            where = sorted({".".join(str(part) for part in problem["loc"]) or "$" for problem in error.errors()})
            text = f"the manifest is wrong at {', '.join(where)[:400]}"
            raise ArtifactError(ArtifactReason.BAD_MANIFEST, text) from None
        except ValueError:
            text = "the manifest holds a value that JSON cannot carry"
            raise ArtifactError(ArtifactReason.BAD_MANIFEST, text) from None


def schema_of(folder: Path, *, root: Path) -> str:
    """Which kind of artifact the manifest in ``folder`` says that it is, "" if it says nothing. Raises ArtifactError."""
    told = strict_object(_manifest_bytes(folder, root), "the manifest", ArtifactReason.BAD_MANIFEST).get("schema")
    return told if isinstance(told, str) else ""


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


def _manifest_bytes(folder: Path, root: Path) -> bytes:
    return read_regular(folder / MANIFEST, root=root, limit_bytes=MANIFEST_LIMIT_BYTES)


def _sha256(*parts: bytes) -> str:
    """Each part's length goes in first, so that no bytes can move from one part to the next."""
    seen = hashlib.sha256()
    for part in parts:
        seen.update(len(part).to_bytes(8, "little"))
        seen.update(part)
    return seen.hexdigest()


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
