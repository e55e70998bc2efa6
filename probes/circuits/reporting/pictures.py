"""The pictures of a circuit's report: its graph, each node's part, necessity, and faithfulness over sizes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from probes.circuits.findings import Findings, NodeFinding
from probes.circuits.manifest import CircuitManifest, CircuitNode
from probes.circuits.nodes import Node
from probes.reporting.drawing import INK, LINES, MUTED, OTHER, OWN, RULE, WARN, figure
from probes.reporting.html import Html

_SHOWN_EDGES, _LEAST_SHARE = 48, 0.05
_BROKEN, _BETTER = -0.2, 1.5  # shares of the behaviour, beyond which a picture need not go
_MARGIN = 0.8  # above and below the nodes, in heights of one; names stand below them
_HIGHER = 0.3  # so that lines between blocks of one node each do not lie upon each other
_OVER_LINES = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
_HEAD, _MLP, _RESIDUAL = "o", "s", "D"


def graph(about: CircuitManifest, found: Findings) -> Html:
    """Nodes by layer, from the words on the left to the answer on the right."""
    places = _places(about)
    layers = sorted({node.where.layer for node in places})
    across = {layer: number for number, layer in enumerate(layers)}
    heights = [y for _, y in places.values()]
    low, high = min(heights, default=0.0) - _MARGIN, max(heights, default=0.0) + _MARGIN

    def draw(axes: Any) -> None:
        at = {node.name: (across[node.where.layer], y) for node, (_, y) in places.items()}
        _edges(axes, found, at)
        _to_the_answer(axes, about, at, len(layers))
        for one in about.nodes:
            _node(axes, one, at[one.node])
        axes.text(len(layers), 0, "answer", ha="left", va="center", color=INK)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set(xlabel="block", xlim=(-0.6, len(layers) + 0.7), ylim=(low, high), yticks=[])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)

    caption = (
        "The circuit's nodes by block: heads are round, MLPs square; filled ones are watched. A node is the larger the more of "
        "the behaviour goes when it alone is patched. Lines between nodes: what share of the later one's output comes from the "
        f"earlier one, directly or through others (the strongest, from {_LEAST_SHARE:.0%} on; brown: it works against it)."
    )
    return figure("graph", caption, draw, width=max(5.0, 1.6 + 0.62 * len(layers)), height=1.0 + 0.5 * (high - low))


def parts(found: Findings) -> Html:
    """Each node ablated alone, and spared alone."""
    shown = tuple(reversed(found.nodes))

    def draw(axes: Any) -> None:
        for place, one in enumerate(shown):
            _part(axes, one, place)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.plot([], [], "o", color=OWN, label="lost when it alone is ablated")
        axes.plot([], [], "o", color=LINES[1], label="back when it alone is spared")
        axes.set_yticks(range(len(shown)), [short(one.node) for one in shown])
        axes.set(xlabel="share of the behaviour", ylim=(-0.7, len(shown) - 0.3))
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=8, ncols=2)

    caption = "What each node is there for, with 95 % intervals over pairs."
    return figure("parts", caption, draw, height=1.2 + 0.27 * len(shown))


def necessity(found: Findings) -> Html:
    """What is left without the nodes that act, beside random sets of as many."""

    def draw(axes: Any) -> None:
        shown = [one for one in reversed(found.ablations) if one.explains]
        last = len(shown) - 1
        for place, one in enumerate(shown):
            left = [_within(value) for value in one.necessity.random]
            axes.plot(left, [place] * len(left), "|", color=MUTED, markersize=9, alpha=0.7)
            axes.plot([_within(edge) for edge in one.necessity.interval], [place, place], color=OWN, linewidth=2)
            axes.plot(_within(one.necessity.left), place, "o", color=OWN)
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.axvline(0.5, color=OTHER, linewidth=0.8, linestyle="--")
        axes.set_yticks(range(last + 1), [one.kind for one in shown])
        axes.set(xlabel="share of the behaviour that is left", ylim=(-0.6, last + 0.6))
        axes.grid(visible=False, axis="y")

    caption = (
        f"What is left when its {found.acting} are ablated (dot, 95 %), by the way of ablation, "
        "and when as many at random are (ticks). "
        "To be needed, it must leave half at most, and less than they do. What is beyond the edges is drawn at them."
    )
    return figure("necessity", caption, draw, height=1.9)


def sizes(found: Findings) -> Html:
    """Faithfulness over sizes: whether few nodes are enough."""

    def draw(axes: Any) -> None:
        points = found.curve.points
        axes.plot([one.size for one in points], [one.faithfulness for one in points], "o-", color=OWN, linewidth=1.4)
        axes.axhline(1, color=INK, linewidth=0.8)
        axes.set(xscale="log", xlabel="share of all nodes that is kept", ylabel="of the behaviour")

    caption = (
        f"How much of the behaviour the most important nodes do by themselves: CPR {found.curve.cpr:.2f} (1 is best), CMD "
        f"{found.curve.cmd:.2f} (0 is best)."
    )
    return figure("sizes", caption, draw)


def _within(share: float) -> float:
    return min(max(share, _BROKEN), _BETTER)


def short(name: str) -> str:
    """A node's name for a picture.

    >>> short("blocks.5.attn_heads.3"), short("blocks.5.mlp_out"), short("blocks.5.resid_post")
    ('5.3', 'MLP 5', 'stream 5')
    """
    node = Node.parse(name)
    if node.head is not None:
        return f"{node.where.layer}.{node.head}"
    return f"{'MLP' if node.where.site.value == 'mlp_out' else 'stream'} {node.where.layer}"


def _places(about: CircuitManifest) -> dict[Node, tuple[int, float]]:
    """Each node's block and height: those of one block stand one above another, every other block a little higher."""
    by_layer: dict[int, list[Node]] = defaultdict(list)
    for node in sorted(one.what for one in about.nodes):
        by_layer[node.where.layer].append(node)
    return {
        node: (layer, number - (len(nodes) - 1) / 2 + (_HIGHER if place % 2 else -_HIGHER))
        for place, (layer, nodes) in enumerate(by_layer.items())
        for number, node in enumerate(reversed(nodes))
    }


def _edges(axes: Any, found: Findings, at: dict[str, tuple[int, float]]) -> None:
    for edge in [one for one in found.edges if abs(one.share) >= _LEAST_SHARE][:_SHOWN_EDGES]:
        start, end = at[edge.source], at[edge.target]
        bent = "arc3,rad=0.12" if start[0] != end[0] else "arc3,rad=0.5"
        style = {"arrowstyle": "-|>", "connectionstyle": bent, "shrinkA": 9, "shrinkB": 9, "mutation_scale": 8}
        weight = min(abs(edge.share), 1.0)
        colour = OWN if edge.share > 0 else WARN
        axes.annotate(
            "", end, start, arrowprops=style | {"color": colour, "lw": 0.4 + 2.6 * weight, "alpha": 0.25 + 0.6 * weight}
        )


def _to_the_answer(axes: Any, about: CircuitManifest, at: dict[str, tuple[int, float]], right: int) -> None:
    for one in about.nodes:
        axes.plot([at[one.node][0], right - 0.05], [at[one.node][1], 0], color=RULE, linewidth=0.7, zorder=0)


def _node(axes: Any, one: CircuitNode, at: tuple[int, float]) -> None:
    marker = _HEAD if one.what.head is not None else _MLP if one.what.where.site.value == "mlp_out" else _RESIDUAL
    watched = one.readout is not None
    size = 90 + 420 * min(abs(one.effect), 1.0)
    face, edge = (OWN if watched else "white"), (OWN if one.effect >= 0 else WARN)
    axes.scatter([at[0]], [at[1]], s=size, marker=marker, facecolor=face, edgecolor=edge, linewidth=1.4, zorder=4)
    name = {"ha": "center", "va": "top", "fontsize": 7.5, "color": INK, "zorder": 5, "bbox": _OVER_LINES}
    axes.annotate(short(one.node), at, xytext=(0, -15), textcoords="offset points", **name)


def _part(axes: Any, one: NodeFinding, place: int) -> None:
    for value, interval, colour, shift in (
        (one.alone, one.alone_interval, OWN, 0.12),
        (one.back, one.back_interval, LINES[1], -0.12),
    ):
        axes.plot(interval, [place + shift] * 2, color=colour, linewidth=1.6)
        axes.plot(value, place + shift, "o", color=colour, markersize=4)
