"""A probe whose gate passed is written anew, with the serving config at which it counts as at home from now on."""

from __future__ import annotations

from pathlib import Path

from probes.artifact import Artifact, save_artifact
from probes.errors import LabError
from probes.manifest import Admission, Manifest, ModelBinding
from probes.release.gate import Gated, Verdict
from probes.release.version import Change, next_version
from sidecar.errors import ArtifactError


def admit(artifact: Artifact, config: ModelBinding, found: Gated, into: Path) -> Manifest:
    """Write the artifact's next patch version, which is not signed, to ``into``; return its manifest.

    Raises LabError if the gate did not pass, or if ``into`` cannot be written.
    """
    if found.verdict is not Verdict.PASS:
        raise LabError(f"{artifact.manifest.name} is not admitted: the gate says {found.verdict.value}")
    about = artifact.manifest
    fields = about.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"schema_", "content_digest", "signature"}
    )
    fields["admitted"] = [one.model_dump(mode="json") for one in _with(about.admitted, _admission(config, found))]
    fields["version"] = next_version(about.version, Change.PATCH)
    try:
        return save_artifact(into, fields, artifact.directions, artifact.offsets)
    except ArtifactError as error:
        raise LabError(f"{into}: {error.text}") from None
    except OSError as error:
        raise LabError(f"{into}: {error.strerror}") from None


def _admission(config: ModelBinding, found: Gated) -> Admission:
    return Admission(
        weights_digest=config.weights_digest,
        dtype=config.dtype,
        quantisation=config.quantisation,
        engine=config.engine,
        rows=found.rows,
        flips=found.flips,
    )


def _with(before: tuple[Admission, ...], new: Admission) -> list[Admission]:
    """The newest gate of a config is the one that counts."""
    config = ("weights_digest", "dtype", "quantisation", "engine")
    return [*(one for one in before if any(getattr(one, name) != getattr(new, name) for name in config)), new]
