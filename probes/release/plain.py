"""A linear probe without its evidence: what other tools keep of one, and what travels between them and us."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from probes.artifact import Artifact
from probes.errors import LabError
from probes.manifest import Aggregation, Manifest
from probes.pooling import LINEAR
from sidecar.types import FloatArray, TapPoint

LIMIT_BYTES = 64 << 20
_WIDEST = 65536
_MOST_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class PlainProbe:
    """Readings are ``x @ directions + offsets``. directions: float32 [D, K]; offsets: float32 [K].

    where, aggregation: None if the file does not say.
    """

    directions: FloatArray
    offsets: FloatArray
    where: TapPoint | None = None
    aggregation: Aggregation | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is exported: a plain probe, and what its manifest says around it."""

    plain: PlainProbe
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def score_threshold(self) -> float:
        """The score above which it fires, before calibration; the same decisions as the artifact's at any length.

        Raises LabError if thresholds differ by length.
        """
        threshold, calibration = self.manifest.threshold, self.manifest.calibration
        assert threshold is not None
        assert calibration is not None
        if threshold.buckets:
            raise LabError(f"{self.name}: it has thresholds by length, and that format has room for one")
        share = min(max(threshold.probability, 1e-12), 1 - 1e-12)
        return (math.log(share / (1 - share)) - calibration.offset) / calibration.scale


def outgoing(artifact: Artifact) -> Outgoing:
    about = artifact.manifest
    return Outgoing(PlainProbe(artifact.directions, artifact.offsets, about.where, about.aggregation), about)


def single(plain: PlainProbe, what: str) -> tuple[npt.NDArray[np.float64], float]:
    """The one direction, float64 [D], and its offset. Raises LabError if there are several, or the score is no weighted sum."""
    if plain.directions.shape[1] != 1:
        raise LabError(f"{what} holds one direction, this probe has {plain.directions.shape[1]}")
    if plain.aggregation is not None and plain.aggregation.kind not in LINEAR:
        raise LabError(
            f"{what} reads one row a text, and {plain.aggregation.kind.value} over a text's rows is not the reading of any one row"
        )
    return plain.directions[:, 0].astype(np.float64), float(plain.offsets[0])


def plain_probe(
    path: Path,
    directions: npt.ArrayLike,
    offsets: npt.ArrayLike,
    where: TapPoint | None = None,
    aggregation: Aggregation | None = None,
) -> PlainProbe:
    """Check what a file gave. directions: [D], or [D, K]; offsets: a number, or [K]. Raises LabError naming the file."""
    try:
        slopes, shifts = np.asarray(directions, dtype=np.float64), np.asarray(offsets, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise LabError(f"{path}: its weights are not numbers") from None
    slopes = slopes[:, None] if slopes.ndim == 1 else slopes
    if slopes.ndim != 2 or not 1 <= slopes.shape[1] <= _MOST_COLUMNS or not 1 <= slopes.shape[0] <= _WIDEST:
        raise LabError(f"{path}: its weights have the shape {np.shape(directions)}; want [D] or [D, K]")
    if len(shifts) != slopes.shape[1]:
        raise LabError(f"{path}: {slopes.shape[1]} directions and {len(shifts)} offsets")
    with np.errstate(over="ignore"):
        found = PlainProbe(slopes.astype(np.float32), shifts.astype(np.float32), where, aggregation)
    if not (np.isfinite(found.directions).all() and np.isfinite(found.offsets).all()):
        raise LabError(f"{path}: a weight is not a number, or too large for float32")
    if not found.directions.any(axis=0).all():
        raise LabError(f"{path}: a direction is all zeros, and can read nothing")
    return found


def parse_where(path: Path, name: str | None) -> TapPoint | None:
    if not name:
        return None
    try:
        return TapPoint.parse(name)
    except ValueError as error:
        raise LabError(f"{path}: {error}") from None


def parse_aggregation(path: Path, text: str | None) -> Aggregation | None:
    from pydantic import ValidationError

    if not text:
        return None
    try:
        return Aggregation.model_validate_json(text)
    except ValidationError:
        raise LabError(f"{path}: its aggregation is none that is known") from None


def must_be_small(path: Path) -> None:
    """Raises LabError if the file is missing, is no file, or is larger than any probe."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
    if not path.is_file():
        raise LabError(f"{path}: not a file")
    if size > LIMIT_BYTES:
        raise LabError(f"{path}: {size} bytes; no probe is larger than {LIMIT_BYTES}")
