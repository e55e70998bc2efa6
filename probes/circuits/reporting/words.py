"""What a validated circuit does not show, in plain words and with its own numbers."""

from __future__ import annotations

from probes.circuits.findings import Findings, per_cent
from probes.circuits.manifest import CircuitManifest
from probes.circuits.replacing import Ablation
from probes.circuits.validation.gates import at_least, of_kind

_NEARLY_ALL = 0.9
_ALONE = 0.8  # of the behaviour: from there on a set may be said to do it by itself


def limits(about: CircuitManifest, found: Findings) -> tuple[str, ...]:
    """Sentences for people who will be woken by it."""
    pairs = f"It was shown on {found.pairs} pairs of one kind."
    ablated = "An ablated model is in states that it is never in by itself, and each of the three ways to ablate errs differently."
    bound = "It holds for these weights, this precision and this engine."
    return (
        _sufficient(about, found),
        *_one_alone(found),
        f"{pairs} Other texts that call for the same behaviour may use other nodes.",
        f"{ablated} That is why a page wants all three to agree; that they do is no proof.",
        _seen(about),
        _elsewhere(found),
        "Lines of the graph are total effects, through whatever lies between two nodes. No single path was patched.",
        f"{bound} Elsewhere it is stale: shown, and never paging, until it is validated again there.",
    )


def _sufficient(about: CircuitManifest, found: Findings) -> str:
    first = of_kind(found, Ablation.RESAMPLE)
    count = len(about.parts)
    nodes = f"This one node of {found.universe}" if count == 1 else f"These {count} nodes of {found.universe}"
    if first.faithfulness >= _ALONE:
        alone = f"{nodes} keep {first.faithfulness:.0%} of the behaviour going with all others ablated, on these pairs."
        return f"{alone} That is rare, and it is no proof that nothing else ever takes part."
    apart = f"with all others ablated {per_cent(first.faithfulness)} of it is left, and without them {per_cent(first.completeness)}"
    return (
        f"{nodes} are not the whole circuit: {apart}. A small set may be needed, and still not do the work by itself."
    )


def _one_alone(found: Findings) -> tuple[str, ...]:
    """Said of a node that takes nearly all away by itself: what the others are needed for is seen only with that one spared."""
    strongest = max(found.nodes, key=lambda one: one.alone)
    if strongest.alone < _NEARLY_ALL or len(found.nodes) == 1:
        return ()
    left = of_kind(found, Ablation.RESAMPLE).completeness + strongest.back
    rests = f"{strongest.node} alone takes {strongest.alone:.0%} away, as a node does on which everything rests, whatever is asked."
    return (f"{rests} How much the others are needed is seen with it spared: then {per_cent(left)} is left.",)


def _seen(about: CircuitManifest) -> str:
    score = about.score
    missed = f"{1 - score.engaged_share:.0%} of {score.engaged_tokens} tokens at which the circuit is at work"
    worst = 1 - at_least(score.engaged_share, score.engaged_tokens)
    return (
        f"The score misses {missed} (95 %: up to {worst:.0%}), and is engaged on {score.traffic_share:.1%} of tokens without it. "
        "A quiet circuit does not show that the behaviour does not happen, and one engaged token is no evidence that it does. What "
        "counts is that the share moves."
    )


def _elsewhere(found: Findings) -> str:
    return (
        f"Of {found.validity.others} nodes outside the circuit each was ablated alone to see whether it moves the score. Two or "
        "more together, and any change of the model that is no ablation, were not tried."
    )
