"""A circuit's report: one page from which a person can decide what it may do, and what it does not show."""

from __future__ import annotations

from pathlib import Path

from probes.circuits.findings import AblationFinding, Findings, Interval, per_cent
from probes.circuits.manifest import FOR_PAGES, CircuitManifest, Readout, ReadoutKind, Severity
from probes.circuits.reporting import pictures
from probes.circuits.reporting.words import limits
from probes.errors import LabError
from probes.reporting.html import Child, Html, join, prose, table, tag
from probes.reporting.page import document, gate_list, section
from sidecar.types import Evidence

HTML = "report.html"


def write_report(about: CircuitManifest, folder: Path) -> Path:
    """Write report.html into ``folder``; the same manifest gives the same bytes. Raises LabError if it cannot be written."""
    try:
        (folder / HTML).write_text(render(about), encoding="utf-8")
    except OSError as error:
        raise LabError(f"{folder}: {error.strerror}") from None
    return folder / HTML


def render(about: CircuitManifest) -> str:
    """Lay the page out: what it may do, gates, graph, numbers, readouts, limits. Texts are escaped."""
    found = about.findings
    title = f"{about.name}: report of a circuit"
    if found is None:
        return document(title, [_header(about), _verdict(about)])
    return document(
        title,
        [
            _header(about),
            _verdict(about),
            _figures(about, found),
            section("What this does not show", tag("ul", *(tag("li", prose(text)) for text in limits(about, found)))),
            section("Gates", gate_list(about.gates)),
            section("The circuit", pictures.graph(about, found), _nodes(about, found)),
            section("Whether it is needed", *_needed(found)),
            section("How it is read on live traffic", _readouts(about), _score(about, found)),
            section("Where it comes from", _origin(about, found)),
        ],
    )


def _header(about: CircuitManifest) -> Html:
    what = tag("p", tag("b", about.behaviour), class_="reads")
    return tag("header", tag("h1", about.name), what, tag("p", about.description) if about.description else None)


def _verdict(about: CircuitManifest) -> Html:
    headline, colour, text = _decided(about)
    return tag("section", tag("p", headline, class_="headline"), tag("p", prose(text)), class_=f"verdict {colour}")


def _decided(about: CircuitManifest) -> tuple[str, str, str]:
    if about.findings is None:
        return "Draft: not validated.", "bad", "Nothing was shown about it. It is told what `probes validate` finds."
    if about.evidence is not Evidence.USED:
        failed = ", ".join(about.failed).replace("_", " ")
        return (
            "Draft: never pages.",
            "bad",
            f"It failed: {failed}. The numbers below say by how much. With a baseline it may open tickets.",
        )
    if about.severity is Severity.PAGE:
        return (
            "Validated: may page.",
            "good",
            "It passed every gate, on the very model that is named below and on no other.",
        )
    agreed = FOR_PAGES in {gate.name for gate in about.gates if gate.passed}
    why = "More was not asked for." if agreed else "The three ways of ablation do not agree, so it may not page."
    return "Validated: may open tickets.", "fair", f"It passed every gate of a circuit. {why}"


def _figures(about: CircuitManifest, found: Findings) -> Html:
    first, valid = found.ablations[0], found.validity
    low, high = (max(0.0, 1 - edge) for edge in reversed(first.necessity.interval))
    cells = [
        (
            "Evidence",
            about.evidence.value,
            f"{len(about.parts)} of {found.universe} nodes, {len(about.watched)} watched",
        ),
        (
            f"Lost without its {found.acting}",
            f"{1 - first.necessity.left:.0%}",
            f"95 %: {low:.0%} to {high:.0%}; {found.pairs} pairs",
        ),
        ("Does by itself", per_cent(first.faithfulness), "F(C), everything else ablated"),
        ("Readout validity", f"{valid.ratio:.3g}", "circuit's effect over the worst other node's"),
        (
            "Seen at work",
            f"{about.score.engaged_share:.0%}",
            f"and {about.score.traffic_share:.1%} of traffic without it",
        ),
    ]
    return tag("dl", *(_cell(*cell) for cell in cells), class_="figures")


def _cell(name: str, value: str, note: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", note)))


def _nodes(about: CircuitManifest, found: Findings) -> Html:
    told = {one.node: one for one in found.nodes}
    rows: list[list[Child]] = []
    for one in about.nodes:
        part, watched = told.get(one.node), "" if one.readout is None else "watched"
        shares = (
            ["", ""]
            if part is None
            else [_share(part.alone, part.alone_interval), _share(part.back, part.back_interval)]
        )
        rows.append([one.node, _signed(one.effect), *shares, watched])
    head = ("node", "when it was found", "lost without it, 95 %", "back with it alone, 95 %", "")
    picture = tag("div", pictures.parts(found), class_="pictures")
    return join([picture, table(head, rows, "Nodes, and what each is there for")])


def _share(value: float, interval: Interval) -> str:
    return f"{_signed(value)} [{_signed(interval[0])}, {_signed(interval[1])}]"


def _signed(value: float) -> str:
    """A share in per cent, and nothing without a sign of less than nothing.

    >>> _signed(-0.001), _signed(0.314)
    ('+0%', '+31%')
    """
    return f"{round(value, 2) + 0.0:+.0%}"


def _plain(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def _shares(one: AblationFinding) -> list[str]:
    if not one.explains:
        return ["says nothing: m(0) is not below m(M)", "", "", "", ""]
    each = one.necessity
    return [
        _plain(one.faithfulness),
        _plain(one.completeness),
        f"{_plain(each.left)} [{_plain(each.interval[0])}, {_plain(each.interval[1])}]",
        f"{sorted(each.random)[len(each.random) // 2]:.2f}, {min(each.random):.2f}",
        f"{each.p_value:.3f}",
    ]


def _needed(found: Findings) -> list[Child]:
    rows = [[one.kind, f"{one.whole:+.2f}", f"{one.none:+.2f}", *_shares(one)] for one in found.ablations]
    without = (f"F(M without its {found.acting}), 95 %", f"without as many random {found.acting}: median, lowest", "p")
    head = ("ablation", "m(M)", "m(0)", "F(C)", "F(M without C)", *without)
    formula = tag(
        "p",
        "F(X) = (m(X) - m(0)) / (m(M) - m(0)): the share of the behaviour that is left when just the nodes X are at work. "
        f"m is {found.metric}. M are all {found.universe} nodes ({', '.join(found.sites)}).",
    )
    both = tag("div", pictures.necessity(found), pictures.sizes(found), class_="pictures")
    return [formula, both, table(head, rows, "Three ways of ablation")]


def _readouts(about: CircuitManifest) -> Html:
    rows = [
        [one.node, _how(one.readout), f"{one.readout.mu:.3g}", f"{one.readout.sigma:.3g}", f"{one.readout.weight:+.2f}"]
        for one in about.watched
        if one.readout is not None
    ]
    return table(("node", "read by", "mu", "sigma", "weight in the score"), rows, "Readouts")


def _how(told: Readout) -> str:
    if told.kind is not ReadoutKind.ENERGY:
        return told.kind.value
    if not told.columns:
        return "energy of all of it"
    return f"energy of {told.columns} column{'s' if told.columns > 1 else ''}"


def _score(about: CircuitManifest, found: Findings) -> Html:
    score, valid = about.score, found.validity
    return tag(
        "p",
        f"A token is engaged when the score is above {score.theta:.3f}: so are {score.engaged_share:.1%} of "
        f"{score.engaged_tokens} tokens at which the circuit is at work, and {score.traffic_share:.1%} of "
        f"{score.traffic_tokens:,} tokens of traffic without it. The first {about.skip_positions} tokens of a text are not "
        f"read; {about.k} tokens of a session make its bet. Ablating the circuit lowers the score by {valid.circuit:.2f}; of "
        f"{valid.others} other nodes the worst, {valid.worst_node}, moves it by {valid.worst:.2f}.",
    )


def _origin(about: CircuitManifest, found: Findings) -> Html:
    made = about.model
    rows = [
        ["model", f"{made.name}, {made.architecture}, {made.layers} blocks, {made.dtype}, {made.engine}"],
        ["weights", made.weights_digest],
        ["spec hash", about.spec_hash],
        ["pairs", f"{found.pairs}, digest {found.pairs_digest}"],
        ["traffic", found.traffic],
        ["version", about.version],
        ["licence", about.licence],
    ]
    return table(("", ""), rows)
