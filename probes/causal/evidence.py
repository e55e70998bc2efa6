"""What has been shown about a probe; always worked out from what was measured, never typed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from probes.causal.erasure import Refit
from probes.causal.interventions import ABLATE, ABLATE_AFTER, PATCH, STEER
from probes.quality.gates import GateName as QualityGate
from probes.stages import Evaluated, Gate, Intervention
from sidecar.types import Evidence

_DECODABLE = frozenset({QualityGate.BEATS_TEXT.value, QualityGate.SHUFFLED_LABELS.value})


class GateName(StrEnum):
    """The gates of a validation. The first three make a signal used."""

    BEHAVES = "behaves"
    NEEDED = "needed"
    SUFFICIENT = "sufficient"
    ERASED = "erased"


_USED = frozenset({GateName.BEHAVES.value, GateName.NEEDED.value, GateName.SUFFICIENT.value})


def weigh(gates: Sequence[Gate], evaluated: Evaluated | None) -> Evidence:
    """``used`` if the model behaves, ablation moves it, and steering or patching does; else what the evaluation has shown."""
    if _all_passed(gates, _USED):
        return Evidence.USED
    if evaluated is not None and _all_passed(evaluated.gates, _DECODABLE):
        return Evidence.DECODABLE
    return Evidence.UNVERIFIED


def behaves(auroc: float, interval: tuple[float, float]) -> Gate:
    """The model itself answers differently for the two labels: without that there is nothing that a direction could move."""
    passed = interval[0] > 0.5
    opening = (
        "The model's own answers tell the labels apart"
        if passed
        else "The model's own answers do not tell the labels apart: ask it another question"
    )
    numbers = f"AUROC {auroc:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] of its log-odds before any edit"
    return Gate(name=GateName.BEHAVES.value, passed=passed, text=f"{opening}: {numbers}.")


def needed(done: Sequence[Intervention]) -> Gate:
    """Taking the direction out, at its layer or from there on, costs the model more than random directions do."""
    found = [one for one in done if one.name in (ABLATE, ABLATE_AFTER)]
    passed = any(one.passed for one in found)
    opening = (
        "Without the direction the model answers worse, more than without random ones"
        if passed
        else "It is not shown that the model needs the direction"
    )
    return Gate(name=GateName.NEEDED.value, passed=passed, text=f"{opening}: {_told(found)}.")


def sufficient(done: Sequence[Intervention]) -> Gate:
    """Setting the direction moves the answers: by patching, or by steering at every number of standard deviations tried."""
    steered = [one for one in done if one.name.startswith(STEER)]
    patched = [one for one in done if one.name == PATCH]
    passed = any(one.passed for one in patched) or (bool(steered) and all(one.passed for one in steered))
    opening = (
        "Setting the direction turns the model's answers, more than setting random ones"
        if passed
        else "It is not shown that setting the direction turns the model's answers"
    )
    return Gate(name=GateName.SUFFICIENT.value, passed=passed, text=f"{opening}: {_told([*patched, *steered])}.")


def erased(refit: Refit) -> Gate:
    """After erasure a new probe finds nothing: the erasure did what it says."""
    passed = refit.unreadable
    opening = "Erased states cannot be read" if passed else "Erased states can still be read: do not trust the erasure"
    numbers = f"a new probe's AUROC is {refit.after:.3f} on erased test texts, {refit.before:.3f} before"
    return Gate(name=GateName.ERASED.value, passed=passed, text=f"{opening}: {numbers}.")


def _all_passed(gates: Sequence[Gate], names: frozenset[str]) -> bool:
    return names <= {gate.name for gate in gates if gate.passed}


def _told(found: Sequence[Intervention]) -> str:
    if not found:
        return "it was not run"
    return "; ".join(
        f"{one.name} {one.effect:+.3f} [{one.interval[0]:+.3f}, {one.interval[1]:+.3f}], random at most "
        f"{max(one.random_effects):+.3f}, p = {one.p_value:.3f}"
        for one in found
    )
