"""States that `sidecar record` wrote, read as the rows of a store's texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.activations.collect import Origin
from probes.activations.encoding import decode
from probes.activations.files import whole_file
from probes.activations.model import UnloadedModel
from probes.errors import LabError
from probes.manifest import ModelBinding
from sidecar.recorded import RecordedError, read_origin, states_path
from sidecar.states_file import StatesFile, StatesFileError, read_states
from sidecar.types import FloatArray, ModelIdentity, Site, TapPoint

_WORDS = {
    Site.RESID_POST: "the residual stream after block {}, before any norm",
    Site.ATTN_HEADS: "the outputs of the heads of block {}, side by side",
    Site.MLP_OUT: "the output of the MLP of block {}, before it is added to the residual stream",
}


def prompt_name(ids: Sequence[int]) -> str:
    """What a prompt is called in prompts and recordings: by its tokens, so that the same are never asked twice.

    >>> prompt_name([1, 2, 3])
    'e2e2033ae7e19d680599d4eb0a1359a2'
    """
    return hashlib.sha256(np.asarray(ids, "<i8").tobytes()).hexdigest()[:32]


def write_prompts(path: Path, tokens: Sequence[Sequence[int]]) -> None:
    """The file that `sidecar record --ask` takes. Raises LabError if the disk refuses."""
    prompts = {prompt_name(ids): list(ids) for ids in tokens}
    with whole_file(path) as file:
        for name, ids in prompts.items():
            file.write(json.dumps({"id": name, "tokens": ids}).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Recordings:
    """A folder of one engine's states. columns: by tap point, which layer of every file it is."""

    folder: Path
    origin: Origin
    columns: Mapping[TapPoint, int]

    def rows(self, ids: Sequence[int], point: TapPoint, skip: int) -> FloatArray:
        """Float32 [n, width] of a text of these tokens. Raises LabError naming the file if it is not what it should be."""
        found, start = self._read(ids), min(skip, len(ids) - 1)
        return decode(np.ascontiguousarray(found.bits[start:, self.columns[point]]).view(found.dtype.storage))

    def missing(self, tokens: Sequence[Sequence[int]]) -> list[int]:
        """Which texts have no file."""
        return [text for text, ids in enumerate(tokens) if not states_path(self.folder, prompt_name(ids)).is_file()]

    def _read(self, ids: Sequence[int]) -> StatesFile:
        path = states_path(self.folder, prompt_name(ids))
        try:
            found = read_states(path)
        except StatesFileError as error:
            raise LabError(f"{path}: {error}") from None
        if found.token_ids.tolist() != list(ids) or found.layers < len(self.columns):
            raise LabError(f"{path} is not of the tokens, or not of the tap points, that its name and its folder say")
        return found


def open_recordings(folder: Path, model: UnloadedModel, points: Sequence[TapPoint]) -> Recordings:
    """Raises LabError if the folder is no recording, lacks a tap point, or is of another model or tokenizer than ``model``.

    points: empty for all that are there.
    """
    try:
        told = read_origin(folder)
    except RecordedError as error:
        raise LabError(str(error)) from None
    if told is None:
        raise LabError(f"{folder} holds no recording: `sidecar record` makes one")
    points = tuple(points) or told.tap_points
    if lacking := [point.name for point in points if point not in told.tap_points]:
        raise LabError(f"{folder} has no {lacking[0]}; it has {', '.join(point.name for point in told.tap_points)}")
    _must_be_of(told.model, model, folder)
    words = {
        point.name: f"{_WORDS[point.site].format(point.layer)}, as tapped in {told.model.engine}" for point in points
    }
    origin = Origin(_binding(told.model), told.model.width, dict.fromkeys(words, _width(folder)), words)
    return Recordings(folder, origin, {point: told.tap_points.index(point) for point in points})


def _must_be_of(engine: ModelIdentity, model: UnloadedModel, folder: Path) -> None:
    pairs = (("blocks", model.layers, engine.layers), ("tokenizer", model.tokenizer_digest, engine.tokenizer_digest))
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise LabError(
                f"{folder}: recorded from another model than {model.name}: {what}: "
                f"{str(ours)[:12]} here, {str(theirs)[:12] or '(not known)'} in {engine.engine}"
            )
    for name in ("weights_digest", "dtype", "engine"):
        if not getattr(engine, name):
            raise LabError(f"{folder}: the engine did not say its {name.replace('_', ' ')}: nothing can be bound to it")


def _binding(engine: ModelIdentity) -> ModelBinding:
    fields = {name: getattr(engine, name) for name in ModelBinding.model_fields}
    return ModelBinding(**fields | {"encoder_layers": engine.encoder_layers or None})


def _width(folder: Path) -> int:
    """Of every layer of every file."""
    path = next(iter(sorted(folder.glob("*.safetensors"))), None)
    if path is None:
        raise LabError(f"{folder} holds no states")
    try:
        return read_states(path).width
    except StatesFileError as error:
        raise LabError(f"{path}: {error}") from None
