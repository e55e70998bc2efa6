"""What a circuit must have shown before it may be called validated, and before it may page. Worked out from findings, never typed.

There is no gate of sufficiency: in a real model a small set of heads is necessary for a behaviour and does not do it alone. F(C)
and its curve are told beside the gates for what they are.
"""

from __future__ import annotations

from enum import StrEnum

from probes.circuits.findings import AblationFinding, Findings, per_cent
from probes.circuits.manifest import FOR_PAGES, Score
from probes.circuits.replacing import Ablation
from probes.manifest.findings import GateResult

# At most this much of the behaviour is left without the circuit: it does at least half of the work.
LEFT = 0.5
P_LIMIT = 0.05
FEWEST_RANDOMS = 19  # with fewer, nothing could be rarer than one in twenty
VALID_RATIO = 5.0
# Of the way from engaged tokens down to traffic, that the score must go when the circuit is ablated. Without it a score that
# hardly anything moves passes by its ratio: on the toy one that tells words apart (AUROC .94) had 14, and went 6 % of the way.
VALID_WAY = 0.5
ALIKE = 0.6  # mean Jaccard index: of eight nodes, six are chosen again
READ = 0.5  # of the tokens at which the circuit is at work, that are surely engaged


class GateName(StrEnum):
    """Every one but the last must pass for a circuit to be validated; the last as well before it pages."""

    BEHAVES = "behaves"
    NECESSARY = "necessary"
    MINIMAL = "minimal"
    STABLE = "stable"
    READOUT = "readout"
    READS = "reads"
    AGREE = FOR_PAGES


def gates(found: Findings, score: Score) -> tuple[GateResult, ...]:
    """In the order in which they are shown."""
    resample = of_kind(found, Ablation.RESAMPLE)
    return (
        _behaves(resample),
        _necessary(resample, found.acting),
        _minimal(found),
        _stable(found),
        _readout(found),
        _reads(score),
        _agree(found),
    )


def of_kind(found: Findings, kind: Ablation) -> AblationFinding:
    return next(one for one in found.ablations if one.kind == kind.value)


def _behaves(resample: AblationFinding) -> GateResult:
    passed = resample.whole > 0 and resample.whole > resample.none
    text = f"m is {resample.whole:+.2f} in the model, and {resample.none:+.2f} once every node is ablated"
    opening = (
        "The model does it" if passed else "The model does not do it: there is nothing that a circuit could explain"
    )
    return _gate(GateName.BEHAVES, passed, f"{opening}: {text}.")


def _necessary(resample: AblationFinding, acting: str) -> GateResult:
    found, passed = resample.necessity, _needed(resample)
    left, worst = per_cent(found.left), per_cent(found.interval[1])
    numbers = (
        f"without its {acting} {left} of the behaviour is left (95 %: up to {worst}; at most {LEFT:.0%} is asked for), without "
        f"random sets of as many {per_cent(_median(found.random))} (p {found.p_value:.3f}, {len(found.random)} sets)"
    )
    opening = "It is needed" if passed else "It is not shown to be needed"
    return _gate(GateName.NECESSARY, passed, f"{opening}: {numbers}.")


def _needed(one: AblationFinding) -> bool:
    found = one.necessity
    rare = found.p_value <= P_LIMIT and len(found.random) >= FEWEST_RANDOMS
    return one.explains and rare and found.interval[1] <= LEFT


def _minimal(found: Findings) -> GateResult:
    idle = [one.node for one in found.nodes if max(one.alone_interval[0], one.back_interval[0]) <= 0]
    if idle:
        return _gate(GateName.MINIMAL, False, f"Nodes without any part that is shown: {', '.join(idle)[:800]}.")
    text = "Each node has a part: ablated alone it takes something away, or spared alone it brings something back."
    return _gate(GateName.MINIMAL, True, text)


def _stable(found: Findings) -> GateResult:
    if found.stability is None:
        return _gate(GateName.STABLE, False, "Not measured: its nodes were not chosen by effects on pairs.")
    alike = found.stability.jaccard
    text = f"from its own pairs drawn again other nodes would be chosen, {alike:.2f} alike (Jaccard; {ALIKE:.2f} is asked for)"
    return _gate(
        GateName.STABLE, alike >= ALIKE, f"{'It is stable' if alike >= ALIKE else 'It is not stable'}: {text}."
    )


def _readout(found: Findings) -> GateResult:
    valid = found.validity
    way = valid.circuit / valid.gap if valid.gap > 0 else 0.0
    passed = valid.ratio >= VALID_RATIO and way >= VALID_WAY
    opening = (
        "The score reads the circuit" if passed else "The score does not read the circuit, or reads other nodes too"
    )
    numbers = (
        f"ablating its {found.acting} moves it by {valid.circuit:.2f}, {way:.0%} of the way down to traffic ({VALID_WAY:.0%} is "
        f"asked for), and the worst of {valid.others} other nodes ({valid.worst_node}) by {valid.worst:.2f}: "
        f"ratio {valid.ratio:.3g}, at least {VALID_RATIO:g} is asked for (AUROC {valid.auroc:.3f} proves nothing)"
    )
    return _gate(GateName.READOUT, passed, f"{opening}: {numbers}.")


def _reads(score: Score) -> GateResult:
    least = at_least(score.engaged_share, score.engaged_tokens)
    passed = least >= READ
    numbers = (
        f"{score.engaged_share:.0%} of {score.engaged_tokens} tokens at which it is at work are engaged (95 %: from {least:.0%} "
        f"on; at least {READ:.0%} is asked for), and {score.traffic_share:.1%} of {score.traffic_tokens:,} tokens of traffic "
        "without it"
    )
    return _gate(GateName.READS, passed, f"{'It is seen' if passed else 'It is mostly not seen'} at work: {numbers}.")


def _agree(found: Findings) -> GateResult:
    kinds = {one.kind for one in found.ablations}
    passed = kinds == {kind.value for kind in Ablation} and all(map(_needed, found.ablations))
    numbers = "; ".join(map(_told, found.ablations))
    opening = "All three ablations agree, so that it may page" if passed else "Ablations do not agree: tickets only"
    return _gate(GateName.AGREE, passed, f"{opening}. {numbers}.")


def _told(one: AblationFinding) -> str:
    if not one.explains:
        return f"{one.kind}: says nothing, for with every node ablated m is {one.none:+.2f}, and {one.whole:+.2f} in the model"
    found = one.necessity
    median = per_cent(_median(found.random))
    return f"{one.kind}: {per_cent(found.left)} left, of random sets {median} (p {found.p_value:.3f})"


def at_least(share: float, count: int) -> float:
    """The lower end of the exact 95 % interval of a share (Clopper and Pearson, 1934).

    >>> round(at_least(1.0, 5), 3), round(at_least(1.0, 6), 3), at_least(0.0, 9)
    (0.478, 0.541, 0.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(round(share * count), count).proportion_ci(0.95).low) if count else 0.0


def _median(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2] if values else float("nan")


def _gate(name: GateName, passed: bool, text: str) -> GateResult:
    return GateResult(name=name.value, passed=passed, text=text[:2000])
