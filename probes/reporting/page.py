"""The report as one page that needs nothing else: styles and pictures are inside, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from probes.manifest import GateResult
from probes.reporting import plots, sections
from probes.reporting.decision import Decision, Ship
from probes.reporting.html import Child, Html, join, prose, tag
from probes.reporting.record import Record
from probes.stages import Gate

# The browser itself is told to fetch nothing, whatever a text on the page may say.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_COLOURS = {Ship.PAGE: "good", Ship.SHOW: "fair", Ship.NOT: "bad"}


def render(record: Record, decision: Decision, limits: Sequence[str]) -> str:
    """Lay the page out: the decision first, then gates, figures, pictures, tables and limits. Texts are escaped."""
    return document(f"{record.training.name}: report of a probe", _blocks(record, decision, limits))


def document(title: str, blocks: Sequence[Child]) -> str:
    """A page of these blocks, with our style inside and a policy under which a browser fetches nothing."""
    style = resources.files("probes.reporting").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag("body", tag("main", *blocks))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _blocks(record: Record, decision: Decision, limits: Sequence[str]) -> list[Child]:
    return [
        _header(record),
        _verdict(record, decision),
        sections.figures(record),
        section("Gates", _gates(record)),
        section("How good it is", *_quality(record)),
        section("Whether the model uses it", *_causal(record)),
        section("When it fires", sections.thresholds(record), sections.operating_points(record)),
        section("How it was trained", plots.layers(record.training), sections.candidates(record)),
        section("Limits", tag("ul", *(tag("li", prose(text)) for text in limits))),
        section("Where it comes from", sections.origin(record)),
    ]


def _header(record: Record) -> Html:
    made = record.training
    reads = tag("p", tag("b", made.positive_label), " against ", tag("b", made.negative_label), class_="reads")
    return tag("header", tag("h1", made.name), reads, tag("p", made.description) if made.description else None)


def _verdict(record: Record, decision: Decision) -> Html:
    reasons = tag("ul", *(tag("li", prose(reason)) for reason in decision.reasons))
    undone = tag("ul", *(tag("li", prose(text)) for text in record.undone), class_="undone") if record.undone else None
    missing = tag("p", tag("b", "Not done:")) if record.undone else None
    headline = tag("p", decision.headline, class_="headline")
    return tag("section", headline, reasons, missing, undone, class_=f"verdict {_COLOURS[decision.ship]}")


def _gates(record: Record) -> Html:
    if not record.gates:
        return tag("p", "No gate was tried: neither evaluation nor validation was done.")
    return gate_list(record.gates)


def gate_list(gates: Sequence[Gate | GateResult]) -> Html:
    """Gates with what each found, the failed ones first."""
    return tag("ul", *(_gate(gate) for gate in sorted(gates, key=lambda gate: gate.passed)), class_="gates")


def _gate(gate: Gate | GateResult) -> Html:
    mark, words = ("passed", "passed") if gate.passed else ("failed", "FAILED")
    return tag(
        "li", tag("span", words, class_="mark"), tag("b", gate.name.replace("_", " ")), " ", gate.text, class_=mark
    )


def _quality(record: Record) -> list[Child]:
    found = record.evaluated
    if found is None:
        return [tag("p", "Not evaluated.")]
    pictures = [
        plots.roc(found),
        plots.reliability(found),
        plots.rivals(found),
        plots.controls(found),
        plots.strata(found),
    ]
    return [
        tag("div", *pictures, class_="pictures"),
        sections.rivals(found),
        sections.elsewhere(found),
        sections.words(found),
    ]


def _causal(record: Record) -> list[Child]:
    found = record.validated
    if found is None:
        return [tag("p", "Not tested. A probe that reads something does not show that the model uses it.")]
    return [sections.behaviour(found), plots.interventions(found), sections.interventions(found)]


def section(title: str, *children: Child) -> Html:
    return tag("section", tag("h2", title), join(children))
