"""What was found out about a signal: how good it is, what was required of it, and whether the model uses it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from probes.manifest.fields import Finite, Share, Strict, Text


class Quality(Strict):
    """Held-out quality beside what plain text features reach on the same rows. Intervals are 95 % bootstrap."""

    test_rows: Annotated[int, Field(ge=1)]
    auroc: Share
    auroc_interval: tuple[Share, Share]
    baselines: dict[str, Share]
    best_baseline: str
    gain: Finite
    gain_interval: tuple[Finite, Finite]
    shuffled_label_auroc: Share
    verdict: Text


# Gates that ask whether the model uses what is read. One that is not passed makes the evidence less, and the probe no worse.
OF_VALIDATION = frozenset({"behaves", "needed", "sufficient", "erased"})


class GateResult(Strict):
    """One thing that was required before release, and whether it was so."""

    name: Text
    passed: bool
    text: Text


class InterventionResult(Strict):
    """What changing the direction did to the model's own behaviour; p: its place among random directions."""

    name: Text
    effect: Finite
    interval: tuple[Finite, Finite]
    p_value: Share
    passed: bool


class Validation(Strict):
    """Whether the model uses what is read. behaviour: what was measured, and its unit."""

    behaviour: Text
    interventions: Annotated[tuple[InterventionResult, ...], Field(max_length=32)]
