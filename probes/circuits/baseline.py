"""A baseline: what is sound traffic for each circuit and slice, by hour of the week. An artifact like a probe's: frozen, signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from probes.envelope import Form
from probes.manifest.fields import Digest, Sealed, Strict, Text
from probes.tensorfile import dump_tensors, parse_tensors
from sidecar.circuits.circuit import SLICES, Floats
from sidecar.circuits.reference import WEEK, Reference, hour_of_week
from sidecar.circuits.watch import Watched
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import FloatArray

SCHEMA = "stethoscope.baseline/1"
MOST = 1 << 24  # sessions that are told of an hour: so far float32 holds every integer
_NAMES = frozenset({"mean", "half_width", "sessions"})
_HOUR_S = 3600
Count = Annotated[int, Field(ge=0)]
Tick = Annotated[int, Field(ge=0, le=1 << 48)]


class State(StrEnum):
    """Whether it may page: not before sessions bet in nine in ten of a week's hours."""

    LEARNING = "learning"
    FROZEN = "frozen"


class BaselineCircuit(Strict):
    """One circuit: by slice how many sessions were learned from. tolerance: the smallest whose replay stayed silent.

    highest: what the replay's evidence came to, as a share of the logarithm of its threshold.
    """

    name: Text
    spec_hash: Text
    tokens: Literal[1, 2, 4, 8]
    slices: Annotated[tuple[Text, ...], Field(min_length=1, max_length=SLICES)]
    sessions: Annotated[tuple[Count, ...], Field(max_length=SLICES)]
    tolerance: Annotated[float, Field(gt=0, lt=1)]
    highest: Annotated[float, Field(lt=1, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _one_for_each_slice(self) -> BaselineCircuit:
        if len(set(self.slices)) != len(self.slices) or len(self.sessions) != len(self.slices):
            raise ValueError("want each slice once, and its sessions")
        return self


class BaselineManifest(Sealed):
    """buckets: 168 hours of the week, or 1 for a demo. left_out: how many parts were left out in turn, to be replayed.

    archives: SHA-256 of the files that it was fitted on.
    """

    schema_: Annotated[Literal["stethoscope.baseline/1"], Field(alias="schema")]
    model_hash: Text
    tick_s: Annotated[int, Field(ge=1, le=3600)]
    buckets: Literal[1, 168]
    state: State
    first_tick: Tick
    last_tick: Tick
    left_out: Annotated[int, Field(ge=2)]
    run_length: Annotated[int, Field(ge=1)]
    archives: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=1024)]
    circuits: Annotated[tuple[BaselineCircuit, ...], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _each_circuit_once(self) -> BaselineManifest:
        if len({one.name for one in self.circuits}) != len(self.circuits) or self.first_tick > self.last_tick:
            raise ValueError("want each circuit once, and ticks in order")
        return self

    @property
    def rows(self) -> int:
        """One for each circuit's slices, in their order."""
        return sum(len(one.slices) for one in self.circuits)


@dataclass(frozen=True, slots=True)
class Levels:
    """float32 [rows, buckets]: means m, and half-widths c; 1 where there was nothing to learn from.

    sessions: how many bet in that very hour, all weeks together, `MOST` at most; with no other hour's, unlike m and c.
    """

    mean: FloatArray
    half_width: FloatArray
    sessions: FloatArray


@dataclass(frozen=True, slots=True)
class Baseline:
    """What `Watch` needs to know of every circuit and slice. digest: of both files."""

    manifest: BaselineManifest
    watched: tuple[Watched, ...]
    digest: str


def load_baseline(folder: Path, *, root: Path) -> Baseline:
    """Read, check and return the baseline in ``folder``, which lies in ``root``. Raises ArtifactError."""
    found = FORM.open(folder, root=root)
    return Baseline(found.manifest, tuple(watched(found.manifest, found.weights)), found.digest)


def save_baseline(folder: Path, fields: Mapping[str, Any], levels: Levels) -> BaselineManifest:
    """Write a baseline that `load_baseline` accepts, or nothing; the same input gives the same bytes. Raises ArtifactError."""
    return FORM.save(folder, fields, dump_tensors({name: getattr(levels, name) for name in _NAMES}))


def watched(manifest: BaselineManifest, levels: Levels) -> list[Watched]:
    """Every circuit in every slice, with its reference."""
    told = [(one, name) for one in manifest.circuits for name in one.slices]
    mean, half_width = levels.mean.astype(np.float64), levels.half_width.astype(np.float64)
    per_tick = levels.sessions.astype(np.float64) / np.maximum(_ticks(manifest), 1)
    return [
        Watched(
            one.name,
            name,
            manifest.model_hash,
            one.spec_hash,
            one.tokens,
            Reference(mean[at], half_width[at], one.tolerance, per_tick[at]),
            len(one.slices),
            manifest.state is State.LEARNING,
        )
        for at, (one, name) in enumerate(told)
    ]


def _ticks(manifest: BaselineManifest) -> Floats:
    """[buckets], how many ticks from the first to the last began in each, whoever came; of whole weeks as many each."""
    tick_s, many = manifest.tick_s, manifest.last_tick - manifest.first_tick + 1
    if manifest.buckets == 1:
        return np.array([float(many)])
    weeks, rest_s = divmod(many * tick_s, WEEK * _HOUR_S)
    ticks = np.full(WEEK, weeks * _HOUR_S / tick_s)
    at_s = manifest.first_tick * tick_s
    ends_s = at_s + rest_s
    while at_s < ends_s:
        next_s = min((at_s // _HOUR_S + 1) * _HOUR_S, ends_s)
        ticks[hour_of_week(at_s)] += -(-next_s // tick_s) + (-at_s // tick_s)  # multiples from at_s to before next_s
        at_s = next_s
    return ticks


def _parse(manifest: BaselineManifest, data: bytes) -> Levels:
    want = (manifest.rows, manifest.buckets)

    def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
        if set(shapes.values()) != {want}:
            raise ArtifactError(
                ArtifactReason.BAD_SHAPE, f"the manifest wants mean, half_width and sessions of shape {want}"
            )

    tensors = parse_tensors(data, _NAMES, check_shapes)
    found = Levels(**tensors)
    if not all(((one >= 0) & (one <= 1)).all() for one in (found.mean, found.half_width)):
        raise ArtifactError(ArtifactReason.BAD_WEIGHTS, "a mean or a half-width is not a share")
    _check_sessions(manifest, found.sessions.astype(np.float64))
    return found


def _check_sessions(manifest: BaselineManifest, sessions: Floats) -> None:
    if not ((sessions >= 0) & (sessions <= MOST) & (sessions == np.floor(sessions))).all():
        raise ArtifactError(ArtifactReason.BAD_WEIGHTS, "a number of sessions is no count")
    told = np.array([float(count) for one in manifest.circuits for count in one.sessions])
    if not ((sessions.sum(axis=1) == told) | (sessions == MOST).any(axis=1)).all():
        raise ArtifactError(ArtifactReason.BAD_WEIGHTS, "the hours' sessions are not those that the manifest tells")


FORM: Form[BaselineManifest, Levels] = Form(SCHEMA, BaselineManifest, _parse)
