"""Artifacts from their folder, and again whenever it changes."""

from __future__ import annotations

import threading

from probes.artifact import Artifact
from probes.registry import FolderWatch, load_folder
from sidecar.config import Config
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.log import Level, Log
from sidecar.plans import Plans
from sidecar.snapshot import ReloadOutcome


def load_artifacts(config: Config) -> tuple[Artifact, ...]:
    """The configured folder's artifacts, none if no folder is configured. Raises ArtifactError."""
    if config.artifacts.folder is None:
        return ()
    found = load_folder(config.artifacts.folder, limit=config.artifacts.max_artifacts)
    columns: dict[str, int] = {}
    for one in found:
        where = one.manifest.tap_point
        columns[where] = columns.get(where, 0) + one.directions.shape[1]
        if columns[where] > config.artifacts.max_columns:
            raise ArtifactError(
                ArtifactReason.TOO_MANY, f"{where}: more than {config.artifacts.max_columns} directions"
            )
    return found


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
