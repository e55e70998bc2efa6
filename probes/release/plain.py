"""A linear probe without its evidence: what other tools keep of one, and what travels between them and us."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from probes.artifact import Artifact
from probes.errors import LabError
from probes.isotonic import last_at_most
from probes.manifest import Aggregation, Manifest
from probes.pooling import LINEAR
from probes.serving import Served
from probes.stages import Places, named, parse_places
from sidecar.types import FloatArray, TapPoint

LIMIT_BYTES = 64 << 20
_WIDEST = 65536
_MOST_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class PlainProbe:
    """Readings are ``x @ directions + offsets``. directions: float32 [D, K]; offsets: float32 [K].

    everywhere: the tap points whose states make a row, side by side. everywhere, aggregation: None if the file does not say.
    """

    directions: FloatArray
    offsets: FloatArray
    everywhere: Places | None = None
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

        Infinite if it always or never fires. Raises LabError if thresholds differ by length.
        """
        threshold, calibration = self.manifest.threshold, self.manifest.calibration
        assert threshold is not None
        assert calibration is not None
        if threshold.buckets:
            raise LabError(f"{self.name}: it has thresholds by length, and that format has room for one")
        if calibration.knots is not None:
            return _crossing(np.array(calibration.knots), threshold.probability)
        share = min(max(threshold.probability, 1e-12), 1 - 1e-12)
        return (math.log(share / (1 - share)) - calibration.offset) / calibration.scale


def _crossing(knots: npt.NDArray[np.float64], share: float) -> float:
    """The score above which the probability along the knots is above ``share``."""
    below = last_at_most(knots, share)
    if below in (-1, len(knots) - 1):
        return math.copysign(math.inf, below)
    (start, least), (stop, most) = knots[below : below + 2].tolist()
    return float(start + (share - least) / (most - least) * (stop - start))


def outgoing(artifact: Artifact) -> Outgoing:
    """Raises LabError for an artifact that is no probe."""
    served, about = Served.of(artifact), artifact.manifest
    return Outgoing(PlainProbe(served.directions, served.offsets, about.everywhere, served.aggregation), about)


def at_one_place(out: Outgoing, what: str) -> TapPoint:
    """The tap point that it reads. Raises LabError if there are several."""
    if out.manifest.also:
        raise LabError(
            f"{out.name}: it reads {named(out.manifest.everywhere)} together, and {what} holds a direction of one tap point"
        )
    return out.manifest.where


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
    everywhere: Places | None = None,
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
        found = PlainProbe(slopes.astype(np.float32), shifts.astype(np.float32), everywhere, aggregation)
    if not (np.isfinite(found.directions).all() and np.isfinite(found.offsets).all()):
        raise LabError(f"{path}: a weight is not a number, or too large for float32")
    if not found.directions.any(axis=0).all():
        raise LabError(f"{path}: a direction is all zeros, and can read nothing")
    return found


def parse_where(path: Path, names: str | None) -> Places | None:
    """Of one name, or of several with commas between them. Raises LabError."""
    if not names:
        return None
    try:
        found = parse_places(*names.split(","))
    except ValueError as error:
        raise LabError(f"{path}: {error}") from None
    if len(set(found)) < len(found):
        raise LabError(f"{path}: a tap point is named twice in {names}")
    return found


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
