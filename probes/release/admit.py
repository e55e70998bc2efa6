"""A probe whose gate passed is written anew, with the serving config at which it counts as at home from now on."""

from __future__ import annotations

from pathlib import Path

from probes.artifact import Artifact, save_artifact
from probes.errors import LabError
from probes.manifest import Admission, Manifest, ModelBinding, ServingConfig
from probes.release.gate import Gated, Verdict
from probes.release.version import Change, next_version
from sidecar.errors import ArtifactError


def admit(artifact: Artifact, reference: ModelBinding, candidate: ModelBinding, found: Gated, into: Path) -> Manifest:
    """Write the artifact's next patch version, which is not signed, to ``into``; return its manifest.

    reference, candidate: the models whose states were compared. Raises LabError if the artifact is not at home at the
    reference, if it tells these texts apart worse than its own, if the gate did not pass, or if ``into`` cannot be written.
    """
    about = artifact.manifest
    _must_be_at_home(about, reference.serving)
    _must_be_its_texts(about, found)
    if found.verdict is not Verdict.PASS:
        raise LabError(f"{about.name} is not admitted: the gate says {found.verdict.value}")
    fields = about.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"schema_", "content_digest", "signature"}
    )
    fields["admitted"] = [one.model_dump(mode="json") for one in _with(about.admitted, _admission(candidate, found))]
    fields["version"] = next_version(about.version, Change.PATCH)
    try:
        return save_artifact(into, fields, artifact.directions, artifact.offsets)
    except ArtifactError as error:
        raise LabError(f"{into}: {error.text}") from None
    except OSError as error:
        raise LabError(f"{into}: {error.strerror}") from None


def _must_be_at_home(about: Manifest, reference: ServingConfig) -> None:
    """What holds as well as it does somewhere foreign need not hold at all: a config is as good as itself."""
    if reference != about.model.serving and all(reference != one.serving for one in about.admitted):
        raise LabError(
            f"{about.name} is not admitted: it is not at home where the reference was collected ({_told(reference)}); "
            f"collect the reference where it is: {_told(about.model.serving)}"
        )


def _must_be_its_texts(about: Manifest, found: Gated) -> None:
    """On texts that it cannot tell apart anywhere, that it decides as before shows next to nothing."""
    assert about.quality is not None, "the manifest's validator guarantees it for a probe"
    least, most = about.quality.auroc_interval[0], found.at_home[1]
    if most < least:
        raise LabError(
            f"{about.name} is not admitted: where it is at home its AUROC on these texts is {most:.3f} at most, on its own it is "
            f"{least:.3f} at least; compare it on texts of the kind that it is for"
        )


def _told(serving: ServingConfig) -> str:
    return (
        f"weights {serving.weights_digest[:12]}, {serving.dtype}, quantisation {serving.quantisation}, {serving.engine}"
    )


def _admission(config: ModelBinding, found: Gated) -> Admission:
    return Admission(**config.serving._asdict(), rows=found.rows, flips=found.flips)


def _with(before: tuple[Admission, ...], new: Admission) -> list[Admission]:
    """The newest gate of a config is the one that counts."""
    return [*(one for one in before if one.serving != new.serving), new]
