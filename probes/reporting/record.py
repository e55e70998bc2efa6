"""All that a draft's stages say, gathered for the report and for packing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probes.causal.evidence import weigh
from probes.draft import Draft
from probes.errors import LabError
from probes.stages import Calibrated, Evaluated, Gate, Part, Stage, Training, Validated
from sidecar.types import Evidence

if TYPE_CHECKING:
    from probes.activations.store import StoreFacts

_LATER: tuple[tuple[type[Stage], str, str], ...] = (
    (Calibrated, "calibration", "`probes calibrate`"),
    (Evaluated, "evaluation", "`probes evaluate`"),
    (Validated, "validation", "`probes validate`"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """What was done. ``undone``: each stage that was not, or no longer counts, in words; facts: of the store, if it is there."""

    training: Training
    calibrated: Calibrated | None
    evaluated: Evaluated | None
    validated: Validated | None
    undone: tuple[str, ...]
    facts: StoreFacts | None

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Of evaluation and validation."""
        done = (self.evaluated, self.validated)
        return tuple(gate for stage in done if stage is not None for gate in stage.gates)

    @property
    def certified(self) -> bool:
        """Every threshold keeps its promise, as far as benign rows can show it."""
        return self.calibrated is not None and all(one.certified for one in self.calibrated.thresholds)

    @property
    def evidence(self) -> Evidence:
        """What the gates of validation and evaluation show now; a stage that no longer counts shows nothing."""
        return weigh(() if self.validated is None else self.validated.gates, self.evaluated)

    def count(self, part: Part) -> int:
        return self.training.parts.count(part)


def read_record(folder: Path) -> Record:
    """Read a draft's stages and its store's facts. Raises LabError if nothing was trained there or a file is damaged."""
    draft = Draft(folder)
    training = draft.training
    undone = tuple(_undone(folder, name, how) for kind, name, how in _LATER if draft.stage(kind) is None)
    return Record(
        training=training,
        calibrated=draft.stage(Calibrated),
        evaluated=draft.stage(Evaluated),
        validated=draft.stage(Validated),
        undone=undone,
        facts=_facts(training),
    )


def _undone(folder: Path, name: str, how: str) -> str:
    if (folder / f"{name}.json").exists():
        return f"The {name} no longer counts: something that it was built on was done again. {how} redoes it."
    return f"No {name} was done: {how} does it."


def _facts(training: Training) -> StoreFacts | None:
    """The facts of the very store that was trained on, or None if it is gone or another stands in its place."""
    from probes.activations.store import ActivationStore

    try:
        store = ActivationStore.open(Path(training.store))
    except LabError:
        return None
    return store.facts if store.digest == training.store_digest else None
