"""Every kind of artifact, told by the schema that its manifest names: what holds for all of them is done here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probes.artifact import FORM as PROBE
from probes.circuits.artifact import FORM as CIRCUIT
from probes.circuits.baseline import FORM as BASELINE
from probes.envelope import Form, schema_of
from probes.manifest.fields import Sealed
from sidecar.errors import ArtifactError, ArtifactReason

# A new kind of artifact is one entry.
FORMS: dict[str, Form[Any, Any]] = {form.schema: form for form in (PROBE, CIRCUIT, BASELINE)}


def form_of(folder: Path, *, root: Path) -> Form[Any, Any]:
    """What kind of artifact lies in ``folder``. Raises ArtifactError, also for a schema that is not known."""
    try:
        return FORMS[schema_of(folder, root=root)]
    except KeyError:
        known = " or ".join(FORMS)
        raise ArtifactError(
            ArtifactReason.BAD_MANIFEST, f"the manifest's schema is none that is known: {known}"
        ) from None


def open_any(folder: Path, *, root: Path) -> Sealed:
    """The manifest of an artifact of any kind, once all of it was read and checked. Raises ArtifactError."""
    manifest: Sealed = form_of(folder, root=root).open(folder, root=root).manifest
    return manifest


def put_signature(folder: Path, signature: str, *, root: Path) -> None:
    """Put a signature into an artifact's manifest, which was opened before; nothing else changes. Raises ArtifactError."""
    form_of(folder, root=root).put_signature(folder, signature, root=root)
