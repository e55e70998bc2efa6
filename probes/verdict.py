"""What the measurements amount to, as a level of evidence and in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from probes.evaluate import SHUFFLED_TOLERANCE, Comparison
from sidecar.types import Evidence

# The block of vLLM's prefix cache: every chat that opens with the same system prompt shares at least one.
CACHED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was measured on rows that neither training nor calibration saw.

    recall, false_alarms: shares of positive and of benign test texts that fire. everyday: chat prompts of all kinds that
    fire, out of everyday_prompts. calibrated_tokens: the 5 % and 95 % quantiles of the calibration prompts' lengths.
    cached_shift: how far the probability moves, on average, if a prefix cache hides the first `CACHED_TOKENS` tokens.
    """

    compared: Comparison
    baselines: dict[str, float]
    shuffled: float
    test_rows: int
    recall: float
    false_alarms: float
    everyday: int
    everyday_prompts: int
    calibrated_tokens: tuple[int, int]
    cached_shift: float

    @property
    def best_baseline(self) -> str:
        return max(self.baselines, key=lambda name: self.baselines[name])


def evidence_of(found: Findings) -> Evidence:
    """Decodable if the gain's whole interval lies above 0 and shuffled labels teach nothing; otherwise unverified."""
    beats = found.compared.gain_interval[0] > 0
    sane = abs(found.shuffled - 0.5) <= SHUFFLED_TOLERANCE
    return Evidence.DECODABLE if beats and sane else Evidence.UNVERIFIED


def verdict_of(found: Findings) -> str:
    """Say in one paragraph which way it went."""
    return " ".join([_against_text(found), _shuffled(found), _operating_point(found)])


def _against_text(found: Findings) -> str:
    low, high = found.compared.gain_interval
    if low > 0:
        opening = "Beats what the text alone shows"
    elif high < 0:
        opening = "Worse than what the text alone shows: use the baseline instead"
    else:
        opening = "Not shown to be better than what the text alone shows"
    rival = found.baselines[found.best_baseline]
    return (
        f"{opening}: AUROC {found.compared.auroc:.3f} against {rival:.3f} of the best text baseline "
        f"({found.best_baseline}) on {found.test_rows} unseen texts, gain {found.compared.gain:+.3f} "
        f"[{low:+.4f}, {high:+.4f}]."
    )


def _shuffled(found: Findings) -> str:
    if abs(found.shuffled - 0.5) <= SHUFFLED_TOLERANCE:
        return f"Trained on shuffled labels it finds nothing ({found.shuffled:.3f})."
    return f"Trained on shuffled labels it still reaches {found.shuffled:.3f}: do not trust these numbers."


def _operating_point(found: Findings) -> str:
    shortest, longest = found.calibrated_tokens
    sentences = [
        f"At its threshold it fires on {found.recall:.0%} of positive and {found.false_alarms:.1%} of benign test texts, and on",
        f"{found.everyday} of {found.everyday_prompts} everyday chat prompts of all kinds.",
        f"The threshold was set on prompts of {shortest} to {longest} tokens, template included;",
        "longer ones may fire more or less often.",
        f"If a prefix cache hides the first {CACHED_TOKENS} tokens, the probability moves by {found.cached_shift:.2f} on average.",
    ]
    return " ".join(sentences)
