"""The report's tables and short paragraphs."""

from __future__ import annotations

from collections.abc import Iterable

from probes.reporting.html import Child, Html, join, table, tag
from probes.reporting.record import Record
from probes.stages import Candidate, Evaluated, OperatingPoint, Part, Validated, named
from probes.training.table import in_words, worth

_CANDIDATES = 12


def figures(record: Record) -> Html | None:
    """The few numbers that a decision rests on."""
    found = record.evaluated
    cells = [("Evidence", record.evidence.value, "what has been shown about it")]
    if found is not None:
        fires = found.fires
        cells += [
            ("AUROC, unseen texts", f"{found.auroc:.3f}", f"{span(found.auroc_interval)}, {found.rows} texts"),
            ("Positives that fire", f"{fires.tpr:.0%}", f"{span(fires.tpr_interval, '.0%')} at its threshold"),
            ("Benign texts that fire", f"{fires.fpr:.1%}", _promise(record)),
            ("Alerts a day", f"{found.alerts_per_day:,.0f}", f"of {found.requests_per_day:,.0f} requests"),
        ]
    return tag("dl", *(_cell(*cell) for cell in cells), class_="figures")


def thresholds(record: Record) -> Html:
    """By length of the request, if that matters."""
    found = record.calibrated
    if found is None:
        return tag("p", "Not calibrated: there is no threshold.")
    rows = [
        [
            f"{one.min_tokens}" if one.min_tokens else "any",
            f"{one.probability:.4f}",
            f"{one.target_fpr:.2%}",
            f"{one.measured_fpr:.2%} {span(one.fpr_interval, '.2%')}",
            f"{one.benign_rows}",
            "certified" if one.certified else "not certified",
        ]
        for one in found.thresholds
    ]
    head = ("tokens from", "fires above", "aimed at", "measured on benign", "rows", "promise")
    prior = f" Probabilities speak of a share of positives of {found.prior:.2%}." if found.prior is not None else ""
    errors = f"ECE {found.ece_before:.3f} before, {found.ece_after:.3f} after"
    text = f"Calibrated by {found.calibration.kind} on {found.rows} texts; {errors}.{prior}"
    added = tag("p", f"Benign texts were added from {found.benign_from}.") if found.benign_from else None
    return join([tag("p", text), added, table(head, rows, "Thresholds")])


def operating_points(record: Record) -> Html | None:
    found = record.evaluated
    if found is None:
        return None
    rows = [_point(f"{one.fpr:.1%}", one) for one in found.operating_points]
    rows.append(_point(f"{found.fires.fpr:.1%} (its threshold)", found.fires))
    head = ("benign that fire", "positives that fire", "95 %", "enough benign rows")
    return table(head, rows, "Operating points on unseen texts")


def rivals(found: Evaluated) -> Html:
    rows: list[list[Child]] = [["this probe", f"{found.auroc:.3f} {span(found.auroc_interval)}", ""]]
    rows += [
        [one.name.replace("_", " "), f"{one.auroc:.3f}", f"{one.gain:+.3f} {span(one.gain_interval, '+.3f')}"]
        for one in found.rivals
    ]
    rows.append(["shuffled labels", f"{found.shuffled_auroc:.3f}", "must be near 0.5"])
    rows.append(["best of 1,000 random directions", f"{found.random_best_auroc:.3f}", "must be lower"])
    if found.first_layer_auroc is not None:
        rows.append(["first layer", f"{found.first_layer_auroc:.3f}", ""])
    note = tag(
        "p", f"Partial AUROC over a false-positive rate of 0.1 % to 10 %: {found.partial_auroc:.3f} (chance 0.5)."
    )
    return join([table(("", "AUROC", "lead of the probe, 95 %"), rows, "Beside what needs no probe"), note])


def elsewhere(found: Evaluated) -> Html | None:
    """Other data sets, and lengths."""
    rows = [[name, f"{count}", f"{value:.3f}", "trained without it"] for name, count, value in found.left_out]
    rows += [[name, f"{count}", f"{value:.3f}", "never trained on"] for name, count, value in found.outside]
    rows += [
        [f"{name} tokens", f"{count}", f"{value:.3f}", "of that length"] for name, count, value in found.length_strata
    ]
    return table(("texts", "how many", "AUROC", ""), rows, "By data set and by length") if rows else None


def words(found: Evaluated) -> Html | None:
    """What gives the label away by itself."""
    if not found.leak_words:
        return None
    told: list[Child] = ["Most telling words of the training texts: "]
    for place, word in enumerate(found.leak_words):
        told += [", " if place else None, tag("code", word)]
    without = (
        ""
        if found.leak_ablated_auroc is None
        else f" On texts without any of them AUROC is {found.leak_ablated_auroc:.3f}."
    )
    return tag("p", *told, ".", without)


def behaviour(found: Validated) -> Html:
    alone = found.behaviour_auroc
    quality = "" if alone is None else f" By itself the model tells the labels apart with AUROC {alone:.3f}."
    skipped = tag("ul", *(tag("li", f"Not run: {text}") for text in found.not_run)) if found.not_run else None
    return join([tag("p", f"Measured on: {found.behaviour.rstrip('.')}.{quality}"), skipped])


def interventions(found: Validated) -> Html | None:
    rows = [
        [
            one.name.replace("_", " "),
            one.text,
            f"{one.effect:+.3f} {span(one.interval, '+.3f')}",
            f"{min(one.random_effects):+.3f} to {max(one.random_effects):+.3f}" if one.random_effects else "",
            f"{one.p_value:.3f}",
            "passed" if one.passed else "failed",
        ]
        for one in found.interventions
    ]
    head = ("intervention", "what was done", "effect, 95 %", "random directions", "p", "")
    return table(head, rows, "Interventions") if rows else None


def candidates(record: Record) -> Html:
    """The best of what was tried; the chosen one need not be the first, for the earliest layer within one error wins."""
    made = record.training
    if not made.candidates:
        return tag(
            "p",
            f"It was not trained here. AUROC {made.select_auroc:.3f} on texts set aside for choosing. {made.description}",
        )
    best = sorted(made.candidates, key=lambda one: -one.auroc)[:_CANDIDATES]
    rows = [
        [
            named(one.everywhere),
            one.kind.replace("_", " "),
            in_words(one.aggregation),
            f"{one.strength:g}",
            _with_error(one),
        ]
        for one in best
    ]
    chosen = (
        f"Chosen: {made.kind.replace('_', ' ')} at {named(made.everywhere)}, {in_words(made.aggregation)}, "
        f"strength {made.strength:g}; AUROC {made.select_auroc:.3f} on the texts that chose between finalists. "
        f"{len(made.candidates)} ways were tried in {made.seconds:.0f} s."
    )
    parts = ", ".join(f"{record.count(part)} {part.value}" for part in Part if record.count(part))
    head = ("tap point", "kind", "aggregation", "strength", "AUROC, cross-validated")
    told = (tag("p", line) for line in worth(made))
    return join(
        [tag("p", chosen), *told, tag("p", f"Texts: {parts}."), table(head, rows, f"The best {len(rows)} of them")]
    )


def origin(record: Record) -> Html:
    made, facts = record.training, record.facts
    rows: list[list[Child]] = [["tap point", tag("code", named(made.everywhere))], ["seed", f"{made.seed}"]]
    rows.append(["activations", tag("code", made.store_digest)])
    if facts is not None:
        model = facts.model
        rows += [
            ["data", f"{facts.data_name}; licence: {facts.data_licence}"],
            ["data digest", tag("code", facts.data_digest)],
            ["model", f"{model.name}, {model.architecture}, {model.layers} blocks"],
            ["served", f"{model.engine}, {model.dtype}, quantisation {model.quantisation}"],
            ["weights digest", tag("code", model.weights_digest)],
            ["tokenizer digest", tag("code", model.tokenizer_digest)],
            ["hook point", "; ".join(facts.hook_points.get(where.name, "") for where in made.everywhere)],
            ["tokens read", f"{facts.token_span.value}, the first {facts.skip_positions} skipped"],
        ]
    return table(("", ""), rows)


def span(interval: Iterable[float], form: str = ".3f") -> str:
    low, high = interval
    return f"[{low:{form}}, {high:{form}}]"


def _promise(record: Record) -> str:
    if record.calibrated is None:
        return ""
    aimed = f"aimed at {record.calibrated.thresholds[0].target_fpr:.1%}"
    return f"{aimed}, {'certified' if record.certified else 'not certified'}"


def _with_error(one: Candidate) -> str:
    return f"{one.auroc:.3f} ± {one.error:.3f}"


def _cell(name: str, value: str, note: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", note)))


def _point(name: str, one: OperatingPoint) -> list[Child]:
    return [name, f"{one.tpr:.1%}", span(one.tpr_interval, ".1%"), "yes" if one.held else "no: a guess"]
