"""What a probe must show before it may fire at anyone. Each gate says in words what was found, with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from probes.quality.bootstrap import Interval
from probes.quality.leaks import Ablated
from probes.quality.lengths import Matched
from probes.quality.measures import rows_to_certify
from probes.quality.rivals import LENGTH
from probes.stages import Calibrated, Gate, LengthThreshold, Rival

SHUFFLED_TOLERANCE = 0.05
_KEPT = 0.5  # of what the AUROC has above chance: less, and the most of it was the length or the words
_SURPRISE = 0.01


class GateName(StrEnum):
    """The gates of an evaluation. Those on text and on shuffled labels make a signal decodable."""

    BEATS_TEXT = "beats_text"
    SHUFFLED_LABELS = "shuffled_labels"
    RANDOM_DIRECTIONS = "random_directions"
    NOT_LENGTH = "not_length"
    NO_LEAKED_WORDS = "no_leaked_words"
    FIRST_LAYER = "first_layer"
    CALIBRATED = "calibrated"
    THRESHOLD = "threshold"


def beats_text(auroc: float, rivals: Sequence[Rival]) -> Gate:
    """The whole interval of the gain over every text baseline lies above 0."""
    hardest = min(rivals, key=lambda rival: rival.gain_interval[0])
    low, high = hardest.gain_interval
    if low > 0:
        opening = "It beats what the text alone shows"
    elif high < 0:
        opening = "It is worse than what the text alone shows: use the baseline instead"
    else:
        opening = "It is not shown to beat what the text alone shows"
    numbers = (
        f"AUROC {auroc:.3f} against {hardest.auroc:.3f} of {hardest.name}, gain {_signed(hardest.gain, (low, high))}"
    )
    return _gate(GateName.BEATS_TEXT, low > 0, f"{opening}: {numbers}.")


def shuffled_labels(found: float) -> Gate:
    """Labels that mean nothing teach nothing."""
    passed = abs(found - 0.5) <= SHUFFLED_TOLERANCE
    rest = (
        "it finds nothing, as it should"
        if passed
        else "something other than labels tells the classes apart: do not trust these numbers"
    )
    return _gate(GateName.SHUFFLED_LABELS, passed, f"Trained on shuffled labels, its AUROC is {found:.3f}: {rest}.")


def random_directions(auroc: float, best: float, gain: Interval) -> Gate:
    """A trained direction reads more than the luckiest of a thousand."""
    passed = gain[0] > 0
    opening = "It beats" if passed else "It is not shown to beat"
    text = f"{opening} the best of 1,000 random directions: AUROC {auroc:.3f} against {best:.3f}"
    return _gate(GateName.RANDOM_DIRECTIONS, passed, f"{text}, gain {_signed(auroc - best, gain)}.")


def not_length(auroc: float, matched: Matched | None, rivals: Sequence[Rival]) -> Gate:
    """Among texts of like length it still tells the classes apart, and it beats the length."""
    rival = next(one for one in rivals if one.name == LENGTH)
    beside = f"the length alone reaches {rival.auroc:.3f}"
    if matched is None:
        text = f"Hardly any texts of different label are of like length ({beside}): what it reads may be the length."
        return _gate(GateName.NOT_LENGTH, passed=False, text=text)
    holds = _holds(auroc, matched.auroc, matched.interval)
    passed = holds and rival.gain_interval[0] > 0
    opening = "It does not read the length" if passed else "It may read the length"
    numbers = f"among texts of like length ({matched.rows}) its AUROC is {_with(matched.auroc, matched.interval)}"
    return _gate(GateName.NOT_LENGTH, passed, f"{opening}: {numbers}, among all {auroc:.3f}; {beside}.")


def no_leaked_words(auroc: float, words: Sequence[str], found: Ablated | None) -> Gate:
    """On texts without the most telling words it still tells the classes apart."""
    name = GateName.NO_LEAKED_WORDS
    if not words:
        return _gate(name, passed=True, text="No word of the training texts gives the label away.")
    told = f"the {len(words)} most telling words ({', '.join(words)})" if len(words) > 1 else f"the word “{words[0]}”"
    if found is None:
        text = f"Hardly any test text of one label is without {told}: what it reads may be these words."
        return _gate(name, passed=False, text=text)
    passed = _holds(auroc, found.auroc, found.interval)
    opening = f"It {'does not need' if passed else 'leans on'} {told}"
    numbers = f"on the {found.rows} test texts without them its AUROC is {_with(found.auroc, found.interval)}"
    rest = f"on all {auroc:.3f}; the best text baseline has {found.rival:.3f} there"
    return _gate(name, passed, f"{opening}: {numbers}, {rest}.")


def first_layer(auroc: float, first: float, gain: Interval, where: str) -> Gate:
    """The model has worked on what it reads: the lowest tap point shows less."""
    passed = first < auroc
    opening = (
        "Earlier states show less"
        if passed
        else "Earlier states show as much: read it there, or doubt that it is more than words"
    )
    text = f"{opening}: AUROC {first:.3f} at {where}, gain {_signed(auroc - first, gain)}."
    return _gate(GateName.FIRST_LAYER, passed, text)


def calibrated(found: Calibrated, ece: float) -> Gate:
    """Higher scores mean more positives, so that a probability could be fitted."""
    passed = found.calibration.kind != "none"
    if not passed:
        text = f"On {found.rows} calibration texts higher scores do not mean more positives: there was nothing to calibrate."
        return _gate(GateName.CALIBRATED, passed=False, text=text)
    return _gate(
        GateName.CALIBRATED, passed=True, text=f"Its probabilities are off by {ece:.3f} on average, on test texts."
    )


def threshold(found: Calibrated, fired: int, benign: int) -> Gate:
    """The threshold promises its rate, and test texts do not belie it. fired: of ``benign`` negative test texts."""
    from scipy.stats import binom

    target = found.thresholds[0].target_fpr
    unsure = [one for one in found.thresholds if not one.certified]
    belied = float(binom.sf(fired - 1, benign, target)) < _SURPRISE
    seen = f"on test texts {fired} of {benign} negatives fire"
    if unsure:
        needed = f"a rate of {target:.1%} takes {rows_to_certify(target)}"
        text = f"It promises nothing: {' and '.join(map(_few, unsure))}, and {needed}; {seen}."
    elif belied:
        text = f"Test texts belie it: it promises to fire on at most {target:.1%} of negatives, and {seen}."
    else:
        rows = sum(one.benign_rows for one in found.thresholds)
        text = (
            f"At most {target:.1%} of negatives fire, with 95 % confidence, by {rows} texts that it was set on; {seen}."
        )
    return _gate(GateName.THRESHOLD, not unsure and not belied, text)


def _holds(auroc: float, left: float, interval: Interval) -> bool:
    return interval[0] > 0.5 and left - 0.5 >= _KEPT * (auroc - 0.5)


def _few(one: LengthThreshold) -> str:
    return (
        f"{one.benign_rows} negatives of at least {one.min_tokens} tokens"
        if one.min_tokens
        else f"it was set on {one.benign_rows} negatives"
    )


def _gate(name: GateName, passed: bool, text: str) -> Gate:
    return Gate(name=name.value, passed=passed, text=text)


def _with(value: float, interval: Interval) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _signed(value: float, interval: Interval) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
