"""What to do with a probe, in one sentence, and why: the top of its report and the verdict in its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from probes.quality.gates import GateName
from probes.quality.thresholds import MAX_LIKE
from probes.reporting.record import Record
from probes.stages import Gate
from sidecar.types import Evidence


class Ship(StrEnum):
    """What the probe is fit for, the best first."""

    PAGE = "page"
    SHOW = "show"
    NOT = "do_not_ship"


_HEADLINES = {
    Ship.PAGE: "Page on it.",
    Ship.SHOW: "Show it, do not page.",
    Ship.NOT: "Do not ship it.",
}


_PRAISE = "It beats what the text alone shows, its threshold is certified, and changing the direction changes what the model does."


@dataclass(frozen=True, slots=True)
class Decision:
    """reasons: sentences, the weightiest first."""

    ship: Ship
    reasons: tuple[str, ...]

    @property
    def headline(self) -> str:
        return _HEADLINES[self.ship]


def decide(record: Record) -> Decision:
    """Weigh the gates, the certificate of the threshold and the evidence.

    Not to be shipped: no evaluation, or a gate of quality failed. To be shown: quality is there, but the threshold promises
    nothing, or it is not shown that the model uses what is read. To page on: all of it.
    """
    against = _against_quality(record)
    if against:
        return Decision(Ship.NOT, against)
    doubts = _doubts(record)
    return Decision(Ship.SHOW, doubts) if doubts else Decision(Ship.PAGE, (_PRAISE,))


def failed_gates(record: Record) -> tuple[Gate, ...]:
    """Those of the evaluation that failed: with any of them a probe is packed as failed, or not at all."""
    return () if record.evaluated is None else tuple(gate for gate in record.evaluated.gates if not gate.passed)


def _against_quality(record: Record) -> tuple[str, ...]:
    if record.evaluated is None:
        return ("Nothing is known about its quality on texts that it has not seen: it was not evaluated.",)
    return tuple(gate.text for gate in failed_gates(record) if not is_about_threshold(gate))


def is_about_threshold(gate: Gate) -> bool:
    """Whether the gate asks what the threshold promises, and not how good the probe is."""
    return gate.name == GateName.THRESHOLD.value


def _doubts(record: Record) -> tuple[str, ...]:
    found = [gate.text for gate in failed_gates(record)]
    if not found and not record.certified:
        found.append("Its threshold is not certified: benign rows were too few to promise its false-positive rate.")
    if record.validated is None:
        found.append("Whether the model uses what the probe reads was not tested.")
    elif record.evidence is not Evidence.USED:
        failed = [gate.text for gate in record.validated.gates if not gate.passed]
        found.append("It is readable, but not shown to be used by the model. " + " ".join(failed))
    return tuple(text.strip() for text in found)


def limits(record: Record) -> tuple[str, ...]:
    """What these numbers do not say, in plain words. Holds for any verdict."""
    told = (_where(record), _lengths(record), _base_rate(record), _elsewhere(record))
    return tuple(text for text in told if text)


def _where(record: Record) -> str:
    if record.facts is None:
        return "The activations that it was trained on are no longer there, so the model and the data cannot be named here."
    model = record.facts.model
    return (
        f"It was made on {model.name} ({model.dtype}, quantisation {model.quantisation}, {model.engine}). Under other weights, "
        "another dtype, quantisation or engine it is stale until `probes gate` has compared the two."
    )


def _lengths(record: Record) -> str:
    found = record.calibrated
    if found is None:
        return ""
    if record.training.aggregation.kind not in MAX_LIKE:
        return "It was calibrated on texts as long as those of the data; much longer ones dilute what it looks for."
    if len(found.thresholds) > 1:
        return ""
    return "One threshold serves every length, but its score can only rise as a text grows: long texts fire more often."


def _base_rate(record: Record) -> str:
    found = record.evaluated
    if found is None:
        return ""
    return (
        f"Alerts a day are reckoned for {found.requests_per_day:,.0f} requests of which {found.prior:.1%} are positive; "
        "where that share is other than assumed, so is the share of alerts that are real."
    )


def _elsewhere(record: Record) -> str:
    found = record.evaluated
    if found is None or found.outside:
        return ""
    return f"All {found.rows} test texts come from the data that it was trained on: other traffic was not measured."
