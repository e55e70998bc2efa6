"""A probe in the making: a folder with its weights and one file for each stage that it has been through.

A stage remembers the bytes of the stages before it. When one of those is done again, what was built on it no longer counts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from probes.activations.files import whole_file
from probes.errors import LabError
from probes.journal import Journal
from probes.serving import Served
from probes.stages import Calibrated, Evaluated, Stage, Training, Validated
from probes.weights import dump_weights, parse_weights
from sidecar.errors import ArtifactError

WEIGHTS = "weights.safetensors"
FITS = "training.fits.jsonl"
_ORDER: tuple[tuple[type[Stage], str], ...] = (
    (Training, "training"),
    (Calibrated, "calibration"),
    (Evaluated, "evaluation"),
    (Validated, "validation"),
)
_NAMES = dict(_ORDER)
_NEEDS: dict[type[Stage], tuple[str, ...]] = {
    Training: (),
    Calibrated: ("training",),
    Evaluated: ("training", "calibration"),
    Validated: ("training",),
}
_StageT = TypeVar("_StageT", bound=Stage)


class Draft:
    """``folder``: where it is. Nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def training(self) -> Training:
        """Raises LabError if there is none."""
        return self._must(Training)

    @property
    def calibrated(self) -> Calibrated:
        """Raises LabError if there is none, or one of an earlier training."""
        return self._must(Calibrated)

    def stage(self, kind: type[_StageT]) -> _StageT | None:
        """What a stage wrote, or None if it was not done, or was done before something that it builds on."""
        try:
            return self._must(kind)
        except _MissingStageError:
            return None

    @property
    def served(self) -> Served:
        """Raises LabError if the weights are missing or damaged."""
        path = self.folder / WEIGHTS
        try:
            weights = parse_weights(path.read_bytes())
        except (OSError, ArtifactError) as error:
            raise LabError(f"{path}: {error}") from None
        return Served(weights.directions, weights.offsets, self.training.aggregation)

    def fits(self, settings: str) -> Journal:
        """Where a training keeps what it has cross-validated, until it is written; the folder is made when there is something."""
        return Journal(self.folder / FITS, settings)

    def write_trained(self, training: Training, served: Served) -> None:
        """Begin anew: later stages no longer count, and what training kept is of no more use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / WEIGHTS) as file:
            file.write(dump_weights(served.directions, served.offsets))
        self.write(training)
        self.fits("").forget()

    def write(self, stage: Stage) -> None:
        """One file, whole or not at all."""
        text = stage.model_dump_json(indent=1)
        whole = f'{{"built_on": "{self._base(type(stage))}", "stage": {text}}}\n'
        with whole_file(self._path(type(stage))) as file:
            file.write(whole.encode())

    def _must(self, kind: type[_StageT]) -> _StageT:
        path = self._path(kind)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _MissingStageError(f"{path} is not there: {_HOW[kind]} comes first") from None
        except ValueError:
            raise LabError(f"{path} is not sound JSON") from None
        if told.get("built_on") != self._base(kind):
            raise _MissingStageError(f"{path} was made before the last {_before(kind)}: do {_HOW[kind]} again")
        try:
            return kind.model_validate_json(json.dumps(told["stage"]))
        except (KeyError, ValidationError) as error:
            raise LabError(f"{path} is not what this version writes: {error}") from None

    def _path(self, kind: type[Stage]) -> Path:
        return self.folder / f"{_NAMES[kind]}.json"

    def _base(self, kind: type[Stage]) -> str:
        """Hex SHA-256 of the weights and of the stages that this one builds on."""
        seen = hashlib.sha256()
        for name in (WEIGHTS, *(f"{one}.json" for one in _NEEDS[kind])):
            try:
                seen.update(hashlib.sha256((self.folder / name).read_bytes()).digest())
            except FileNotFoundError:
                seen.update(b"-")
        return seen.hexdigest()


class _MissingStageError(LabError):
    """Not done, or done before something that it builds on."""


_HOW: dict[type[Stage], str] = {
    Training: "`probes train`",
    Calibrated: "`probes calibrate`",
    Evaluated: "`probes evaluate`",
    Validated: "`probes validate`",
}


def _before(kind: type[Stage]) -> str:
    return " or ".join(_NEEDS[kind]) or "weights"
