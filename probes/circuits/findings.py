"""What was found out about a circuit by taking it, parts of it, and other nodes away."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from probes.manifest.fields import Digest, Finite, Share, Strict, Text

Interval = tuple[Finite, Finite]
Count = Annotated[int, Field(ge=0)]
RANDOM_SETS = 256
EDGES = 256  # the strongest


class Necessity(Strict):
    """F(M without A), A the nodes that act: a circuit's heads, or all of it if it has none. Of it ``interval`` is 95 %.

    The MLPs stay: where hardly any text does without the first block's, it would pass for whatever it is put beside. random:
    F(M without R) of random sets R of as many such nodes; p: the place of A among them.
    """

    left: Finite
    interval: Interval
    random: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=RANDOM_SETS)]
    p_value: Share


class AblationFinding(Strict):
    """One way of ablation. F(X) = (m(X) - m(0)) / (m(M) - m(0)): X is kept, all other nodes put out something else.

    whole: m(M), none: m(0). faithfulness: F(C); completeness: F(M without C).
    """

    kind: Text
    whole: Finite
    none: Finite
    faithfulness: Finite
    completeness: Finite
    necessity: Necessity

    @property
    def explains(self) -> bool:
        """Whether ablating every node takes anything away. Else shares of what it takes say nothing, however large they are."""
        return self.whole > self.none


class NodeFinding(Strict):
    """One node's part. alone: share lost when it alone is ablated; back: share that returns when it alone is spared. 95 %."""

    node: Text
    alone: Finite
    alone_interval: Interval
    back: Finite
    back_interval: Interval


class Edge(Strict):
    """share: of what the clean prompt changes in the target's output at the last token, what goes when the source is patched.

    Directly, or through other nodes.
    """

    source: Text
    target: Text
    share: Finite


class CurvePoint(Strict):
    """F of the most important nodes alone. size: as a share of all nodes."""

    size: Share
    nodes: Count
    faithfulness: Finite


class Curve(Strict):
    """Faithfulness over sizes. cpr: area under it (1: as good as the model at every size); cmd: area between it and 1."""

    points: Annotated[tuple[CurvePoint, ...], Field(min_length=2, max_length=32)]
    cpr: Finite
    cmd: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ReadoutValidity(Strict):
    """What moves the score on engaged tokens: the circuit's nodes that act, and of all others the one that moves it most.

    Effects in units of the score. gap: how far its mean on engaged tokens lies above that on traffic without the circuit.
    ratio: the circuit's effect over the worst other node's, at most a million. auroc is shown beside it, and proves nothing.
    """

    gap: Finite
    circuit: Finite
    worst: Finite
    worst_node: Text
    others: Count
    ratio: Finite
    auroc: Share


class Stability(Strict):
    """How alike the choice of nodes is when other pairs had been drawn: mean Jaccard index with the circuit over resamples."""

    resamples: Count
    jaccard: Share


class Findings(Strict):
    """pairs: that it was validated on, none of which chose its nodes. universe: nodes that m(0) takes away.

    metric: what m is, in words. acting: the circuit's nodes that act. traffic: what it was read on that does not use it.
    """

    metric: Text
    acting: Literal["heads", "nodes"]
    pairs: Count
    pairs_digest: Digest
    traffic: Text
    universe: Count
    sites: Annotated[tuple[Text, ...], Field(max_length=8)]
    ablations: Annotated[tuple[AblationFinding, ...], Field(max_length=8)]
    nodes: Annotated[tuple[NodeFinding, ...], Field(max_length=64)]
    edges: Annotated[tuple[Edge, ...], Field(max_length=EDGES)] = ()
    curve: Curve
    validity: ReadoutValidity
    stability: Stability | None = None


def per_cent(share: float) -> str:
    """A share as people read it: nothing is never less than nothing.

    >>> per_cent(-0.001), per_cent(0.314)
    ('0%', '31%')
    """
    return f"{round(share, 2) + 0.0:.0%}"
