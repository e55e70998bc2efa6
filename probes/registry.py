"""The folder of artifacts that is in force: one sub-folder each, all sound or none loaded."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from probes.artifact import MANIFEST, WEIGHTS, Artifact, load_artifact, refuse_pickles
from probes.circuits.artifact import FORM as CIRCUIT
from probes.circuits.artifact import Circuit, load_circuit
from probes.circuits.baseline import FORM as BASELINE
from probes.circuits.baseline import Baseline, load_baseline
from probes.envelope import schema_of
from probes.safefile import list_names
from sidecar.errors import ArtifactError, ArtifactReason

# Beyond this a folder is not a registry of artifacts; listing it must not take the service's time.
ENTRY_LIMIT = 10_000
_Stat: TypeAlias = tuple[int, int, int] | None
_Signature: TypeAlias = tuple[tuple[str, _Stat, _Stat], ...] | None
Loaded: TypeAlias = Artifact | Circuit | Baseline


def load_folder(root: Path, *, limit: int) -> tuple[Artifact, ...]:
    """The probes among what `load_all` finds."""
    return tuple(one for one in load_all(root, limit=limit) if isinstance(one, Artifact))


def load_all(root: Path, *, limit: int) -> tuple[Loaded, ...]:
    """Every artifact beneath ``root``, sorted by its manifest's name; a baseline, which has none, by that of its folder.

    Hidden entries (Kubernetes' ``..data`` among them) and plain files are passed over. Raises ArtifactError, naming the
    sub-folder, if any artifact is refused, if two have one name, or if there are more than ``limit``.
    """
    names = _artifact_names(root)
    if len(names) > limit:
        raise ArtifactError(ArtifactReason.TOO_MANY, f"{len(names)} artifacts, the limit is {limit}")
    found: dict[str, Loaded] = {}
    for folder in names:
        artifact = _load_named(root, folder)
        name = folder if isinstance(artifact, Baseline) else artifact.manifest.name
        if name in found:
            text = f"{folder}: another sub-folder already holds an artifact named {name}"
            raise ArtifactError(ArtifactReason.DUPLICATE_NAME, text)
        found[name] = artifact
    return tuple(found[name] for name in sorted(found))


def name_of(one: Loaded) -> str:
    """What people know it by; a baseline has no name."""
    return f"the baseline {one.digest[:12]}" if isinstance(one, Baseline) else one.manifest.name


class FolderWatch:
    """Whether an artifact folder changed since it was last asked; the first answer covers the time since it was made.

    Make it before `load_folder`, so that no change falls between. Only stats files: a folder half-written, or gone, is
    a change like any other and never an error.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = _signature(root)

    def changed(self) -> bool:
        now = _signature(self._root)
        before, self._seen = self._seen, now
        return now != before


def _load_named(root: Path, name: str) -> Loaded:
    folder = root / name
    try:
        return _LOAD.get(_schema(folder, root), load_artifact)(folder, root=root)
    except ArtifactError as error:
        raise ArtifactError(error.reason, f"{name}: {error.text}") from None


def _schema(folder: Path, root: Path) -> str:
    """What cannot be told is read as a probe, which says why it is none."""
    try:
        return schema_of(folder, root=root)
    except ArtifactError:
        return ""


_LOAD: dict[str, Callable[..., Loaded]] = {CIRCUIT.schema: load_circuit, BASELINE.schema: load_baseline}


def _artifact_names(root: Path) -> list[str]:
    names = [name for name in list_names(root, root=root, limit=ENTRY_LIMIT) if not name.startswith(".")]
    refuse_pickles(names)
    return [name for name in names if _may_be_artifact(root / name)]


def _may_be_artifact(path: Path) -> bool:
    """Tell folders and broken links (their reading tells why) from a README, which is none of our business."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return True
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise ArtifactError(ArtifactReason.NOT_REGULAR, f"{path.name}: neither a folder nor a regular file")
    return stat.S_ISDIR(mode)


def _signature(root: Path) -> _Signature:
    try:
        names = sorted(path.name for path in root.iterdir())[:ENTRY_LIMIT]
    except OSError:
        return None
    return tuple((name, _stat(root / name / MANIFEST), _stat(root / name / WEIGHTS)) for name in names)


def _stat(path: Path) -> _Stat:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
