"""Artifacts from their folder, and again whenever it changes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from probes.artifact import Artifact
from probes.circuits.artifact import Circuit
from probes.circuits.baseline import Baseline
from probes.registry import FolderWatch, Loaded, load_all, name_of
from probes.release.signature import KeyFileError, Standing, read_public_key
from sidecar.config import Config
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.log import Level, Log
from sidecar.plans import Plans
from sidecar.reading.circuits import columns_of
from sidecar.snapshot import ReloadOutcome


def load_artifacts(config: Config) -> tuple[Loaded, ...]:
    """The configured folder's artifacts, none if no folder is configured. Raises ArtifactError."""
    if config.artifacts.folder is None:
        return ()
    found = load_all(config.artifacts.folder, limit=config.artifacts.max_artifacts)
    if config.artifacts.public_key is not None:
        check_signatures(found, config.artifacts.public_key)
    _check_columns(found, config.artifacts.max_columns)
    _check_baselines(one for one in found if isinstance(one, Baseline))
    return found


def _check_columns(found: Iterable[Loaded], limit: int) -> None:
    """Raises ArtifactError for more directions than that at one tap point."""
    columns: dict[str, int] = {}
    for one in found:
        for name, many in _columns(one):
            columns[name] = columns.get(name, 0) + many
            if columns[name] > limit:
                raise ArtifactError(ArtifactReason.TOO_MANY, f"{name}: more than {limit} directions")


def _columns(one: Loaded) -> list[tuple[str, int]]:
    if isinstance(one, Artifact):
        return [(where.name, one.manifest.columns) for where in one.manifest.everywhere]
    return columns_of(one) if isinstance(one, Circuit) else []


def _check_baselines(found: Iterable[Baseline]) -> None:
    """Raises ArtifactError if two speak of the same circuit of one model: neither is the one that holds."""
    known: set[tuple[str, str]] = set()
    for one in found:
        mine = {(one.manifest.model_hash, circuit.name) for circuit in one.manifest.circuits}
        if twice := mine & known:
            names = ", ".join(sorted(name for _, name in twice))
            raise ArtifactError(ArtifactReason.DUPLICATE_NAME, f"two baselines speak of {names}, for the same model")
        known |= mine


def check_signatures(found: tuple[Loaded, ...], public_key: Path) -> None:
    """Raises ArtifactError, naming the artifact, unless every one was signed by that key. The key is read each time."""
    try:
        key = read_public_key(public_key)
    except KeyFileError:  # its text has the path, which must not reach a log
        raise ArtifactError(ArtifactReason.UNREADABLE, "artifacts.public_key is no Ed25519 key in PEM") from None
    for one in found:
        standing = key.standing(one.manifest)
        if standing is Standing.UNSIGNED:
            raise ArtifactError(ArtifactReason.UNSIGNED, f"{name_of(one)}: not signed")
        if standing is not Standing.SOUND:
            text = "signed by another key" if standing is Standing.OTHER_KEY else "changed since it was signed"
            raise ArtifactError(ArtifactReason.BAD_SIGNATURE, f"{name_of(one)}: {text}")


class Reloader:
    """Watches the artifact folder on a thread of its own: a sound change is put in force, an unsound one is counted."""

    def __init__(self, config: Config, plans: Plans, log: Log) -> None:
        self._config = config
        self._plans = plans
        self._log = log
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watch: FolderWatch | None = None
        self.counts = {
            ReloadOutcome.OK.value: 0,
            ReloadOutcome.REFUSED.value: 0,
        }  # written by the thread, read by snapshots

    def start(self) -> None:
        """Load for the first time. Raises ArtifactError if an artifact is unsound: a sidecar does not start half blind."""
        if self._config.artifacts.folder is None:
            self._log.event(Level.WARNING, "no_artifacts", text="nothing is read: artifacts.folder is not set")
            return
        self._watch = FolderWatch(self._config.artifacts.folder)
        self._plans.load(load_artifacts(self._config))
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stop.wait(self._config.artifacts.reload_s):
            if self._watch is not None and self._watch.changed():
                self._reload()

    def _reload(self) -> None:
        try:
            self._plans.load(load_artifacts(self._config))
        except ArtifactError as refused:
            self.counts[ReloadOutcome.REFUSED.value] += 1
            self._log.event(Level.ERROR, "reload_refused", reason=refused.reason.value, text=refused.text)
        except Exception as bug:  # noqa: BLE001 - the watch must outlive any surprise; counted, and the old plan serves on
            self.counts[ReloadOutcome.REFUSED.value] += 1
            self._log.event(Level.ERROR, "reload_failed", type=type(bug).__name__)
        else:
            self.counts[ReloadOutcome.OK.value] += 1
            self._log.event(Level.INFO, "reloaded", plan_generation=self._plans.generation)
