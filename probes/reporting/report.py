"""A draft's report, for people and for machines, from the same facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from probes.errors import LabError
from probes.reporting.decision import Decision, decide, limits
from probes.reporting.page import render
from probes.reporting.record import Record, read_record
from probes.stages import Part, Stage

HTML, JSON = "report.html", "report.json"
SCHEMA = "stethoscope.report/1"


def write_report(draft: Path, into: Path | None = None) -> Decision:
    """Write report.html and report.json into ``into`` (the draft itself if None), and return what they advise.

    The same stages give the same bytes. Raises LabError if nothing was trained in ``draft``, or a file cannot be written.
    """
    record = read_record(draft)
    decision, told = decide(record), limits(record)
    folder = draft if into is None else into
    page = render(record, decision, told)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HTML).write_text(page, encoding="utf-8")
        (folder / JSON).write_text(json.dumps(as_json(record, decision, told), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise LabError(f"{folder}: {error.strerror}") from None
    return decision


def as_json(record: Record, decision: Decision, told: tuple[str, ...]) -> dict[str, Any]:
    """Everything on the page; not what only its maker can use: the part that each text fell into, and where the store is."""
    training = record.training.model_dump(mode="json", exclude={"parts", "store"})
    return {
        "schema": SCHEMA,
        "decision": {"ship": decision.ship.value, "headline": decision.headline, "reasons": list(decision.reasons)},
        "evidence": record.evidence.value,
        "gates": [gate.model_dump(mode="json") for gate in record.gates],
        "not_done": list(record.undone),
        "limits": list(told),
        "training": training | {"texts": {part.value: record.count(part) for part in Part}},
        "calibration": _dumped(record.calibrated),
        "evaluation": _dumped(record.evaluated),
        "validation": _dumped(record.validated),
        "activations": None if record.facts is None else record.facts.model_dump(mode="json"),
    }


def _dumped(stage: Stage | None) -> dict[str, Any] | None:
    return None if stage is None else stage.model_dump(mode="json")
