"""Whether a probe still holds under another serving config: the same texts, the frozen threshold, a verdict for CI.

Each quantity has a margin. It holds if its whole interval stays within the margin; it is broken if it is worse by the margin or
more and the interval leaves 0 out; anything between is not known, and takes more texts. Intervals: rates by exact bounds on the
texts that changed sides (Clopper and Pearson, both directions at 97.5 %, so that 95 % hold for the difference), AUROC by a paired
bootstrap. Without a single change, 220 benign and 87 positive texts are enough for the default margins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from probes.auroc import auroc
from probes.errors import LabError
from probes.quality.bootstrap import Resamples
from probes.release.compare import Pair
from probes.threshold import clopper_pearson
from sidecar.types import BoolArray

SEED = 0
_FEWEST = 5
_EACH_WAY = 0.975
_KEYS = 200


class Verdict(StrEnum):
    """The worst first: a quality that is lost cannot be realigned, and one that is not known must not pass."""

    DEGRADED = "DEGRADED"
    THRESHOLD_STALE = "THRESHOLD_STALE"
    INCONCLUSIVE = "INCONCLUSIVE"
    PASS = "PASS"  # noqa: S105 - not a password


class State(StrEnum):
    """Of one quantity."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Margins:
    """By how much the candidate may be worse: shares in (0, 1)."""

    auroc: float = 0.02
    fpr: float = 0.02
    recall: float = 0.05

    def __post_init__(self) -> None:
        for name in ("auroc", "fpr", "recall"):
            if not 0 < getattr(self, name) < 1:
                raise LabError(f"the margin of {name} must lie between 0 and 1, not {getattr(self, name):g}")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number under both configs. worse, interval: by how much the candidate is worse; rows: what it was measured on."""

    name: str
    reference: float
    candidate: float
    worse: float
    interval: tuple[float, float]
    margin: float
    rows: int

    @property
    def state(self) -> State:
        low, high = self.interval
        if high < self.margin:
            return State.HOLDS
        return State.BROKEN if low > 0 and self.worse >= self.margin else State.UNKNOWN


@dataclass(frozen=True, slots=True)
class Gated:
    """What a gate found. flips: texts that are decided otherwise; flipped: their keys, at most 200.

    at_home: the interval of the AUROC on these texts in the reference.
    """

    verdict: Verdict
    auroc: Quantity
    fpr: Quantity
    recall: Quantity
    flips: int
    flip_interval: tuple[float, float]
    flipped: tuple[str, ...]
    rows: int
    moved: tuple[str, ...]
    at_home: tuple[float, float]

    @property
    def quantities(self) -> tuple[Quantity, Quantity, Quantity]:
        return self.auroc, self.fpr, self.recall


def gate(pair: Pair, margins: Margins = Margins()) -> Gated:
    """Compare two configs at the frozen threshold. Raises LabError if a class has fewer than five texts."""
    labels = pair.labels
    if min(labels.sum(), (~labels).sum()) < _FEWEST:
        raise LabError(
            f"{int(labels.sum())} positive and {int((~labels).sum())} negative texts: want at least {_FEWEST} of each"
        )
    draws = Resamples(pair.labels, pair.groups, SEED)
    ranked = _ranking(pair, draws, margins.auroc)
    # A false alarm more is worse, and so is a positive less.
    alarms = rate_change(
        "false-positive rate", pair.reference.fires, pair.candidate.fires, ~labels, margins.fpr, sign=1
    )
    caught = rate_change("recall", pair.reference.fires, pair.candidate.fires, labels, margins.recall, sign=-1)
    changed = pair.reference.fires != pair.candidate.fires
    return Gated(
        verdict=_verdict(ranked.state, alarms.state, caught.state),
        auroc=ranked,
        fpr=alarms,
        recall=caught,
        flips=int(changed.sum()),
        flip_interval=clopper_pearson(int(changed.sum()), len(changed)),
        flipped=tuple(pair.keys[at] for at in np.flatnonzero(changed)[:_KEYS]),
        rows=len(labels),
        moved=pair.moved,
        at_home=draws.auroc(pair.reference.scores),
    )


def as_json(found: Gated) -> dict[str, Any]:
    """The same for machines."""
    return {
        "verdict": found.verdict.value,
        "rows": found.rows,
        "moved": list(found.moved),
        "flips": found.flips,
        "flip_share_interval": list(found.flip_interval),
        "flipped": list(found.flipped),
        "quantities": {
            one.name: {
                "reference": one.reference,
                "candidate": one.candidate,
                "worse": one.worse,
                "interval": list(one.interval),
                "margin": one.margin,
                "rows": one.rows,
                "state": one.state.value,
            }
            for one in found.quantities
        },
    }


def _verdict(ranked: State, alarms: State, caught: State) -> Verdict:
    if ranked is State.BROKEN:
        return Verdict.DEGRADED
    if State.BROKEN in (alarms, caught):
        return Verdict.THRESHOLD_STALE
    return Verdict.PASS if {ranked, alarms, caught} == {State.HOLDS} else Verdict.INCONCLUSIVE


def _ranking(pair: Pair, draws: Resamples, margin: float) -> Quantity:
    before, after = (auroc(side.scores, pair.labels) for side in (pair.reference, pair.candidate))
    interval = draws.gain(pair.reference.scores, pair.candidate.scores)
    return Quantity("AUROC", before, after, before - after, interval, margin, len(pair.labels))


def rate_change(
    name: str, before: BoolArray, after: BoolArray, among: BoolArray, margin: float, *, sign: int
) -> Quantity:
    """A share of ``among`` that fires, and the exact interval of its change; sign: 1 if more is worse, -1 if less is."""
    rows = int(among.sum())
    began, ceased = int((after & ~before & among).sum()), int((before & ~after & among).sum())
    worse, better = (began, ceased) if sign > 0 else (ceased, began)
    least, most = clopper_pearson(worse, rows, confidence=_EACH_WAY)
    back_least, back_most = clopper_pearson(better, rows, confidence=_EACH_WAY)
    was, now = (float((fired & among).sum() / rows) for fired in (before, after))
    return Quantity(name, was, now, (worse - better) / rows, (least - back_most, most - back_least), margin, rows)
