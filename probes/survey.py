"""Which layers and aggregations read each concept best: the table behind the layers that the recipes share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probes.collect import load_lab_model
from probes.datasets import Split
from probes.material import gather
from probes.recipes import PROBES, SURVEY_LAYERS, TEXT_LIMIT
from probes.smollm2 import prepared_model
from probes.train import AGGREGATIONS, Choice, choose, survey

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table


def run_survey(bars: Progress) -> dict[str, list[Choice]]:
    """Cross-validate every probe's training rows at every survey layer: about ten minutes on one core."""
    lab = load_lab_model(prepared_model(progress=False))
    task = bars.add_task("surveying", total=len(PROBES))
    found = {}
    for probe in PROBES:
        material = gather(lab, probe.source, SURVEY_LAYERS, bars, limit=TEXT_LIMIT)
        found[probe.name] = survey(material.states, material.labels, material.indices(Split.TRAIN))
        bars.advance(task)
    return found


def write_survey(found: Mapping[str, Sequence[Choice]], path: Path) -> None:
    """Keep the table as JSON, one line for each way to train."""
    lines = [_line(name, choice) for name, choices in found.items() for choice in choices]
    path.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n", encoding="utf-8")


def survey_table(found: Mapping[str, Sequence[Choice]]) -> Table:
    """Lay out AUROCs with layers down and aggregations across; a star marks what `choose` would take."""
    from rich.table import Table

    table = Table("probe", "layer", *(aggregation.kind.value for aggregation in AGGREGATIONS))
    for name, choices in found.items():
        taken = choose(choices)
        for layer in sorted({choice.layer for choice in choices}):
            cells = [_cell(choice, taken) for choice in choices if choice.layer == layer]
            table.add_row(name, str(layer), *cells)
    return table


def _cell(choice: Choice, taken: Choice) -> str:
    return f"{choice.auroc:.3f} ± {choice.error:.3f}{' *' if choice is taken else ''}"


def _line(name: str, choice: Choice) -> str:
    fields = {
        "probe": name,
        "layer": choice.layer,
        "aggregation": choice.aggregation.kind.value,
        "window": choice.aggregation.window,
        "strength": choice.strength,
        "auroc": round(choice.auroc, 4),
        "error": round(choice.error, 4),
    }
    return json.dumps(fields)
