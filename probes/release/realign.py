"""A calibration for another serving config, proposed without any label: the scores' distribution is laid onto the old one.

It assumes that both configs saw texts of the same kind (here the same texts) and that the change is a shift and a stretch of the
score; `straight` says how well that fits. A proposal and no more: labels, or a gate on the realigned probe, decide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.manifest import Calibration, Manifest
from probes.quality.scaling import probabilities
from probes.release.compare import Pair, fires_at

Array = npt.NDArray[np.float64]
ROWS = 50
# The outermost scores of a sample say little about the distribution's.
_QUANTILES = np.linspace(0.05, 0.95, 19)
_STRAIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Proposal:
    """A calibration for the candidate config, at the same thresholds.

    straight: the largest distance of matched quantiles from the line, in standard deviations of the reference's scores; above .1
    the change is not a shift and a stretch. fires_*: share of all texts that fire, under the reference, the candidate as it is,
    and the candidate realigned. threshold: alone, with the old calibration, it fires on as many texts as before did (of
    requests of any length; None if there are thresholds by length).
    """

    rows: int
    calibration: Calibration
    threshold: float | None
    straight: float
    fires_reference: float
    fires_candidate: float
    fires_realigned: float

    @property
    def fits(self) -> bool:
        return self.straight <= _STRAIGHT


def propose(pair: Pair, about: Manifest) -> Proposal:
    """Match quantiles of the candidate's scores with the reference's; labels are not looked at.

    Raises LabError with fewer than 50 texts, or if the candidate's scores do not differ, or rise where the reference's fall.
    """
    assert about.calibration is not None
    assert about.threshold is not None
    before, after = pair.reference, pair.candidate
    if len(before.scores) < ROWS:
        raise LabError(f"{len(before.scores)} texts: a realignment takes at least {ROWS}")
    stretch, shift, straight = _line(after.scores, before.scores)
    new = _moved(about.calibration, stretch, shift)
    realigned = fires_at(about.threshold, probabilities(new, after.scores), after.tokens)
    share = float(before.fires.mean())
    return Proposal(
        rows=len(before.scores),
        calibration=new,
        threshold=None if about.threshold.buckets else _as_many(after.probability, int(before.fires.sum())),
        straight=straight,
        fires_reference=share,
        fires_candidate=float(after.fires.mean()),
        fires_realigned=float(realigned.mean()),
    )


def as_json(proposal: Proposal) -> dict[str, Any]:
    """For whoever packs it: a patch version after review."""
    calibration = proposal.calibration.model_dump(mode="json", exclude_none=True)
    return {"labels_used": False, "fits": proposal.fits} | asdict(proposal) | {"calibration": calibration}


def _moved(old: Calibration, stretch: float, shift: float) -> Calibration:
    """What ``old`` makes of ``stretch * score + shift``, as a calibration of the score. Raises LabError if it is none."""
    if old.knots is None:
        return Calibration(kind=old.kind, scale=old.scale * stretch, offset=old.scale * shift + old.offset)
    if not stretch > 0:
        raise LabError("most of the reference's scores are the same: there is nothing to align")
    return Calibration(kind=old.kind, knots=tuple(((score - shift) / stretch, share) for score, share in old.knots))


def _line(candidate: Array, reference: Array) -> tuple[float, float, float]:
    """The line from the candidate's quantiles to the reference's: slope, intercept, and how far off it is at most."""
    have, want = (np.quantile(scores, _QUANTILES) for scores in (candidate, reference))
    spread = float(reference.std())
    if not (have.std() > 0 and spread > 0):
        raise LabError("all scores are the same: there is nothing to align")
    slope, intercept = np.polyfit(have, want, 1)
    off = float(np.abs(slope * have + intercept - want).max())
    return float(slope), float(intercept), off / spread


def _as_many(probability: Array, fired: int) -> float:
    """The threshold above which ``fired`` of these lie, halfway to the next one."""
    ordered = np.sort(probability)[::-1]
    if fired in (0, len(ordered)):
        return float(ordered[0]) if fired == 0 else 0.0
    return float((ordered[fired - 1] + ordered[fired]) / 2)
