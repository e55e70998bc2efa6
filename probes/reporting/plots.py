"""The report's pictures. Each is None where its stage has not measured what it would show."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from probes.reporting.drawing import INK, LINES, MUTED, OTHER, OWN, RULE, WARN, figure
from probes.reporting.html import Html
from probes.stages import Candidate, Evaluated, Training, Validated
from sidecar.types import TapPoint

_PLAIN = re.compile(r"[$\\^_{}]")


def roc(found: Evaluated) -> Html | None:
    """True positives over false positives on a logarithmic scale: the left is where alerts live."""
    if not found.curve:
        return None
    negatives = max(found.rows - found.positives, 1)
    floor = 0.5 / negatives

    def draw(axes: Any) -> None:
        rates = [(max(fpr, floor), tpr) for fpr, tpr in found.curve]
        axes.plot(*zip(*rates, strict=True), color=OWN, linewidth=1.8, label=f"probe, AUROC {found.auroc:.3f}")
        chance = [floor * (1 / floor) ** (step / 60) for step in range(61)]
        axes.plot(chance, chance, color=OTHER, linewidth=1, linestyle="--", label="chance")
        axes.plot(
            max(found.fires.fpr, floor),
            found.fires.tpr,
            "o",
            color=WARN,
            label="its threshold",
            clip_on=False,
            zorder=5,
        )
        axes.set(
            xscale="log", xlim=(floor, 1), ylim=(0, 1.02), xlabel="benign texts that fire", ylabel="positives that fire"
        )
        axes.legend(loc="lower right")

    caption = f"What fires at every threshold, on {found.rows} unseen texts; one benign text is {1 / negatives:.2%}."
    return figure("roc", caption, draw)


def reliability(found: Evaluated) -> Html | None:
    """What share is positive of those that were given each probability."""
    points = [point for point in found.reliability if point[2]]
    if not points:
        return None

    def draw(axes: Any) -> None:
        most = max(rows for _, _, rows in points)
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle="--")
        axes.plot([told for told, _, _ in points], [seen for _, seen, _ in points], color=OWN, linewidth=1)
        sizes = [12 + 90 * rows / most for _, _, rows in points]
        axes.scatter(
            [told for told, _, _ in points],
            [seen for _, seen, _ in points],
            s=sizes,
            color=OWN,
            zorder=3,
            clip_on=False,
        )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="probability told", ylabel="share positive")

    errors = f"ECE {found.ece:.3f}, Brier {found.brier:.3f}"
    caption = f"Whether its probabilities mean what they say ({errors}); the larger the dot, the more texts."
    return figure("reliability", caption, draw)


def rivals(found: Evaluated) -> Html | None:
    """The probe's lead over each rival, with its interval."""
    if not found.rivals:
        return None

    def draw(axes: Any) -> None:
        for place, rival in enumerate(reversed(found.rivals)):
            low, high = rival.gain_interval
            colour = OWN if low > 0 else WARN
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(rival.gain, place, "o", color=colour)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(
            range(len(found.rivals)), [f"{plain(one.name)} ({one.auroc:.3f})" for one in reversed(found.rivals)]
        )
        axes.set(xlabel="AUROC that the probe is ahead", ylim=(-0.6, len(found.rivals) - 0.4))
        axes.grid(visible=False, axis="y")

    caption = "Its lead over what needs no probe (their AUROC in brackets); an interval that reaches 0 shows no lead."
    return figure("rivals", caption, draw, height=0.9 + 0.36 * len(found.rivals))


def controls(found: Evaluated) -> Html:
    """The probe beside what must read less than it does."""
    bars = [("probe", found.auroc), ("best random direction", found.random_best_auroc)]
    bars += [("first layer", found.first_layer_auroc)] if found.first_layer_auroc is not None else []
    bars += [("same lengths only", found.length_matched_auroc)] if found.length_matched_auroc is not None else []
    bars += [("telling words out", found.leak_ablated_auroc)] if found.leak_ablated_auroc is not None else []
    bars.append(("shuffled labels", found.shuffled_auroc))

    def draw(axes: Any) -> None:
        own = {"probe", "same lengths only", "telling words out"}
        for place, (name, value) in enumerate(reversed(bars)):
            axes.plot(
                [0.5, value], [place, place], color=OWN if name in own else OTHER, linewidth=5, solid_capstyle="butt"
            )
            axes.annotate(
                f"{value:.3f}", (max(value, 0.5), place), xytext=(5, 0), textcoords="offset points", va="center"
            )
        axes.axvline(0.5, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)])
        low = min(0.45, *(value - 0.03 for _, value in bars))
        axes.set(xlabel="AUROC (0.5 is chance)", xlim=(low, 1.08), ylim=(-0.6, len(bars) - 0.4))
        axes.grid(visible=False, axis="y")

    caption = "The probe (blue: its own variants) beside controls that should read little (grey)."
    return figure("controls", caption, draw, height=0.9 + 0.36 * len(bars))


def layers(training: Training) -> Html | None:
    """Cross-validated quality by layer; one line for each way to train."""
    ways: dict[str, dict[int, Candidate]] = defaultdict(dict)
    for one in training.candidates:
        if one.also:
            continue  # it is at no one layer: the table has it
        layer, found = (
            TapPoint.parse(one.tap_point).layer,
            ways[f"{one.kind}, {one.aggregation.kind.value}".replace("_", " ")],
        )
        if layer not in found or one.auroc > found[layer].auroc:
            found[layer] = one
    if not ways:
        return None

    def draw(axes: Any) -> None:
        best_first = sorted(ways.items(), key=lambda item: -max(one.auroc for one in item[1].values()))
        for place, (name, by_layer) in enumerate(best_first):
            _line(axes, name, by_layer, place)
        for place, where in enumerate(training.everywhere):
            axes.axvline(where.layer, color=WARN, linewidth=1, linestyle=":", label=None if place else "chosen")
        axes.set(xlabel="layer", ylabel="AUROC, cross-validated")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return figure(
        "layers", "Where it can be read, on training texts alone; bars are one standard error.", draw, width=6.8
    )


def _line(axes: Any, name: str, by_layer: dict[int, Candidate], place: int) -> None:
    shown = [by_layer[layer] for layer in sorted(by_layer)]
    named = place < len(LINES)
    axes.errorbar(
        sorted(by_layer),
        [one.auroc for one in shown],
        yerr=[one.error for one in shown],
        color=LINES[place] if named else RULE,
        marker="o",
        markersize=3,
        linewidth=1.2,
        elinewidth=0.8,
        label=plain(name) if named else None,
        zorder=20 - place,
    )


def interventions(found: Validated) -> Html | None:
    """Each intervention's effect among those of the random directions."""
    if not found.interventions:
        return None
    shown = tuple(reversed(found.interventions))

    def draw(axes: Any) -> None:
        for place, one in enumerate(shown):
            axes.plot(one.random_effects, [place] * len(one.random_effects), "|", color=MUTED, markersize=9, alpha=0.7)
            colour = OWN if one.passed else WARN
            axes.plot(one.interval, [place, place], color=colour, linewidth=2)
            axes.plot(one.effect, place, "o", color=colour)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [plain(one.name.replace("_", " ")) for one in shown])
        axes.set(xlabel="change of the model's behaviour", ylim=(-0.6, len(shown) - 0.4))
        axes.grid(visible=False, axis="y")

    caption = (
        "What each intervention does to the model (dot and interval) beside random directions of the same size (ticks)."
    )
    return figure("interventions", caption, draw, height=0.9 + 0.42 * len(shown))


def strata(found: Evaluated) -> Html | None:
    """Quality among texts of like length."""
    if len(found.length_strata) < 2:
        return None

    def draw(axes: Any) -> None:
        names = [f"{plain(span)}\n({rows})" for span, rows, _ in found.length_strata]
        axes.plot(range(len(names)), [value for _, _, value in found.length_strata], "o-", color=OWN, linewidth=1.4)
        axes.axhline(0.5, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set(ylim=(0.4, 1.02), xlabel="tokens (texts)", ylabel="AUROC")

    return figure("strata", "Quality among texts of like length.", draw)


def plain(text: str) -> str:
    """Text that matplotlib will not read as mathematics."""
    return _PLAIN.sub(lambda found: " " if found[0] == "_" else "", text)
