"""What each stage of the lab writes into a draft's folder, one file a stage; the next stages and the report read it back."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from probes.manifest import Aggregation, Calibration, Finite, Share, Text
from sidecar.types import Evidence, TapPoint

Interval = tuple[Finite, Finite]
# The tap points that a probe reads, by rising depth. Nearly always one.
Places: TypeAlias = tuple[TapPoint, ...]


def parse_places(*names: str) -> Places:
    """Raises ValueError for a name that is none."""
    return tuple(TapPoint.parse(name) for name in names)


def named(places: Places) -> str:
    """For people.

    >>> named((TapPoint(8), TapPoint(14)))
    'blocks.8.resid_post + blocks.14.resid_post'
    """
    return " + ".join(where.name for where in places)


class Part(StrEnum):
    """What a text is used for. ``OUTSIDE`` is another data set, kept for evaluation alone; ``DROPPED`` has a duplicate."""

    TRAIN = "train"
    SELECT = "select"
    CALIBRATE = "calibrate"
    TEST = "test"
    OUTSIDE = "outside"
    DROPPED = "dropped"


class Stage(BaseModel):
    """Strict, and never changed once written."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Placed(Stage):
    """What reads states: at one tap point, or at several together."""

    tap_point: str
    also: tuple[str, ...] = ()

    @property
    def everywhere(self) -> Places:
        """Every tap point that is read."""
        return parse_places(self.tap_point, *self.also)


class Candidate(_Placed):
    """One way to train, cross-validated on training rows alone: mean AUROC and its standard error over folds."""

    kind: str  # of the estimator, see `probes.kinds`
    aggregation: Aggregation
    strength: Finite
    auroc: Share
    error: Finite


class Training(_Placed):
    """What was trained, on what, and what else was tried."""

    name: Text
    description: Text = ""
    positive_label: Text = "positive"
    negative_label: Text = "negative"
    store: str  # folder of the activations, absolute
    store_digest: str
    kind: str
    aggregation: Aggregation
    strength: Finite
    seed: int
    parts: tuple[Part, ...]  # of every text of the store, in its order
    select_auroc: Share  # on the rows that chose between finalists
    candidates: tuple[Candidate, ...]
    seconds: Finite


class LengthThreshold(Stage):
    """The threshold for requests of at least so many tokens. Rows are the benign ones that it was set on."""

    min_tokens: Annotated[int, Field(ge=0)]
    probability: Share
    target_fpr: Share
    measured_fpr: Share
    fpr_interval: tuple[Share, Share]
    benign_rows: Annotated[int, Field(ge=0)]
    certified: bool


class Calibrated(Stage):
    """From a score to a probability, and when it fires."""

    calibration: Calibration
    prior: Share | None = None  # the share of positives that probabilities speak of, if it was corrected
    ece_before: Share
    ece_after: Share
    thresholds: Annotated[tuple[LengthThreshold, ...], Field(min_length=1)]  # by rising min_tokens, the first is 0
    benign_from: Text = ""  # where added benign rows came from
    rows: int


class Rival(Stage):
    """Something that needs no probe, on the same rows; gain is the probe's AUROC less its own (95 % paired bootstrap)."""

    name: str
    auroc: Share
    gain: Finite
    gain_interval: Interval


class OperatingPoint(Stage):
    """Recall where a share of the benign rows fires. ``held`` is False where the rows are too few to speak of that share."""

    fpr: Share
    threshold: Finite
    tpr: Share
    tpr_interval: tuple[Share, Share]
    held: bool


class Gate(Stage):
    """One thing that was required, and whether it is so, in words that a person can act on."""

    name: str
    passed: bool
    text: str


class Evaluated(Stage):
    """Quality on test rows, which nothing was chosen on."""

    rows: int
    positives: int
    auroc: Share
    auroc_interval: Interval
    partial_auroc: Share  # over FPR 1e-3 .. 1e-1, scaled so that chance is .5
    operating_points: tuple[OperatingPoint, ...]
    fires: OperatingPoint  # at the threshold of the calibration
    ece: Share
    brier: Share
    alerts_per_day: Finite
    requests_per_day: Finite
    prior: Share  # share of positives assumed for alerts_per_day
    rivals: tuple[Rival, ...]
    shuffled_auroc: Share
    random_best_auroc: Share  # the best of a thousand random directions, chosen on training rows
    first_layer_auroc: Share | None
    length_strata: tuple[tuple[str, int, float], ...] = ()  # (tokens from-to, rows, AUROC)
    length_matched_auroc: Share | None = None
    left_out: tuple[tuple[str, int, float], ...] = ()  # (data set, rows, AUROC when trained on the others)
    outside: tuple[tuple[str, int, float], ...] = ()  # (data set, rows, AUROC of this probe)
    leak_words: tuple[str, ...] = ()
    leak_ablated_auroc: Share | None = None  # on texts without the most telling words
    curve: tuple[tuple[Finite, Finite], ...] = ()  # ROC: (FPR, TPR)
    reliability: tuple[tuple[Finite, Finite, int], ...] = ()  # (mean probability, share of positives, rows)
    gates: tuple[Gate, ...]
    seconds: Finite


class Intervention(Stage):
    """One intervention, beside the same done along random directions of the same rank and size."""

    name: str
    text: str  # what was done, in one sentence
    effect: Finite  # on the model's own behaviour, in the unit of `Validated.behaviour`
    interval: Interval
    random_effects: tuple[Finite, ...]
    p_value: Share  # of the effect among the random ones: (1 + as large or larger) / (1 + randoms)
    passed: bool


class Validated(Stage):
    """Whether the model uses what the probe reads."""

    behaviour: Text  # what was measured: a contrast of the model's own next-token log-odds, or its task score
    behaviour_auroc: Share | None = None
    interventions: tuple[Intervention, ...]
    not_run: tuple[str, ...] = ()  # for want of time or of pairs, and why
    evidence: Evidence
    gates: tuple[Gate, ...]
    seconds: Finite
    budget_s: Finite
