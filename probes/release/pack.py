"""From a draft to an artifact: the manifest says what the stages found, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import MANIFEST, Artifact, load_artifact, save_artifact
from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import SCHEMA, Manifest
from probes.quality.gates import GateName
from probes.release.version import FIRST, agreed_version
from probes.reporting.decision import decide, failed_gates
from probes.reporting.record import Record, read_record
from probes.serving import Served
from probes.stages import Calibrated, Evaluated, LengthThreshold, Part, Validated
from probes.weights import Weights
from sidecar.errors import ArtifactError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TEXT_LIMIT = 2000
_BUCKETS = 8
_MORE_ROWS = "`probes calibrate` sets another threshold: at a higher --fpr, or on more rows (--benign). "
_USED = (Part.TRAIN, Part.SELECT, Part.CALIBRATE, Part.TEST)


def pack(
    draft: Path,
    into: Path,
    *,
    version: str | None = None,
    licence: str = "Apache-2.0",
    previous: Path | None = None,
    failed: bool = False,
) -> Manifest:
    """Write the draft as an artifact in ``into``, and return its manifest. The same draft gives the same bytes.

    version: three numbers; if None, computed against ``previous``, or 1.0.0. failed: pack it though gates failed, and say so in
    the manifest. Raises LabError if a stage is missing or no longer counts, a gate failed and ``failed`` is not given, the
    tap points cannot be read together, or ``into`` holds an artifact that is not ``previous``.
    """
    record, served = read_record(draft), Draft(draft).served
    _may_be_packed(record, failed=failed)
    before = None if previous is None else _load(previous)
    _may_be_written(into, previous)
    fields = _fields(record, licence)
    weights = _weights(record, served)
    if before is not None and before.manifest.name != fields["name"]:
        raise LabError(f"{previous}: it is called {before.manifest.name}, and this one {fields['name']}")
    fields["version"] = agreed_version(version, before, _provisional(fields), weights)
    try:
        return save_artifact(into, fields, weights.directions, weights.offsets)
    except ArtifactError as error:
        raise LabError(f"{draft}: {error.text}") from None
    except OSError as error:
        raise LabError(f"{into}: {error.strerror}") from None


def _may_be_packed(record: Record, *, failed: bool) -> None:
    wanted = (record.calibrated, record.evaluated)
    if None in wanted:
        raise LabError(" ".join(record.undone))
    if record.facts is None:
        raise LabError(
            f"{record.training.store}: the activations that it was trained on are gone, or others stand in their place"
        )
    against = failed_gates(record)
    if against and not failed:
        told = "; ".join(f"{gate.name}: {gate.text}" for gate in against)
        gates = "1 gate" if len(against) == 1 else f"{len(against)} gates"
        how = "" if all(gate.name != GateName.THRESHOLD for gate in against) else _MORE_ROWS
        raise LabError(f"{gates} failed ({told}). {how}--failed packs it all the same, and the manifest says so")


def _may_be_written(into: Path, previous: Path | None) -> None:
    if (into / MANIFEST).exists() and (previous is None or previous.resolve() != into.resolve()):
        raise LabError(f"{into}: there is an artifact already; --previous {into} replaces it by its next version")


def _load(folder: Path) -> Artifact:
    try:
        return load_artifact(folder, root=folder)
    except ArtifactError as error:
        raise LabError(f"{folder}: {error.text}") from None


def _provisional(fields: dict[str, Any]) -> Manifest:
    from pydantic import ValidationError

    try:
        return Manifest.model_validate({**fields, "version": FIRST, "schema": SCHEMA, "content_digest": "0" * 64})
    except ValidationError as error:
        first = error.errors()[0]
        raise LabError(f"the manifest would be wrong at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _fields(record: Record, licence: str) -> dict[str, Any]:
    made, facts, calibrated, found = record.training, record.facts, record.calibrated, record.evaluated
    assert facts is not None
    assert calibrated is not None
    assert found is not None
    if not _NAME.fullmatch(made.name):
        raise LabError(
            f"{made.name!r} cannot name an artifact: a small letter, then small letters, digits and _ (at most 63)"
        )
    validation = {} if record.validated is None else {"validation": _validation(record.validated)}
    return validation | {
        "kind": "linear_probe",
        "name": made.name,
        "description": plain(made.description),
        "positive_label": plain(made.positive_label),
        "negative_label": plain(made.negative_label),
        "tap_point": made.tap_point,
        "also": made.also,
        "feature_contract": _contract(record),
        "model": facts.model.model_dump(mode="json"),
        "evidence": record.evidence.value,
        "training_data": _data(record),
        "licence": plain(licence),
        "aggregation": made.aggregation.model_dump(mode="json"),
        "calibration": calibrated.calibration.model_dump(mode="json"),
        "threshold": _threshold(calibrated),
        "quality": _quality(record, found),
        "gates": [{"name": plain(gate.name), "passed": gate.passed, "text": plain(gate.text)} for gate in record.gates],
    }


def _weights(record: Record, served: Served) -> Weights:
    """As an artifact has them: the directions of each tap point in turn. Raises LabError if they are not as wide as its states."""
    made, facts = record.training, record.facts
    assert facts is not None
    parts = served.apart(len(made.everywhere))
    for where, part in zip(made.everywhere, parts, strict=True):
        width, have = facts.widths.get(where.name), len(part.directions)
        if width != have:
            raise LabError(
                f"{where.name} has {width} features and the directions {have}: they are not of this tap point"
            )
    return Weights(
        np.concatenate([part.directions for part in parts], axis=1), np.concatenate([part.offsets for part in parts])
    )


def _contract(record: Record) -> dict[str, Any]:
    made, facts = record.training, record.facts
    assert facts is not None
    return {
        "hook_point": plain("; ".join(facts.hook_points.get(where.name, "") for where in made.everywhere)),
        "width": facts.widths.get(made.tap_point),
        "norm": facts.norm,
        "token_span": facts.token_span.value,
        "skip_positions": facts.skip_positions,
        "chat_template_digest": facts.chat_template_digest,
    }


def _data(record: Record) -> dict[str, Any]:
    facts = record.facts
    assert facts is not None
    counts = " / ".join(str(record.count(part)) for part in _USED)
    name = f"{facts.data_name}; {' / '.join(part.value for part in _USED)}: {counts}"
    rows = sum(record.count(part) for part in _USED)
    return {"name": plain(name), "digest": facts.data_digest, "rows": rows, "licence": plain(facts.data_licence)}


def _threshold(calibrated: Calibrated) -> dict[str, Any]:
    first, *longer = calibrated.thresholds
    if len(longer) > _BUCKETS:
        raise LabError(f"{len(longer)} thresholds for longer requests; {_BUCKETS} can be served")
    buckets = [{"min_tokens": one.min_tokens} | _firing(one) for one in longer]
    return _firing(first) | {"target_fpr": first.target_fpr, "buckets": buckets}


def _firing(one: LengthThreshold) -> dict[str, Any]:
    return {
        "probability": one.probability,
        "measured_fpr": one.measured_fpr,
        "fpr_interval": one.fpr_interval,
        "benign_rows": one.benign_rows,
        "certified": one.certified,
    }


def _quality(record: Record, found: Evaluated) -> dict[str, Any]:
    if not found.rivals:
        raise LabError("the evaluation has no text baselines: nothing can be said of what the probe adds")
    best = max(found.rivals, key=lambda rival: rival.auroc)
    return {
        "test_rows": found.rows,
        "auroc": found.auroc,
        "auroc_interval": found.auroc_interval,
        "baselines": {plain(rival.name): rival.auroc for rival in found.rivals},
        "best_baseline": plain(best.name),
        "gain": best.gain,
        "gain_interval": best.gain_interval,
        "shuffled_label_auroc": found.shuffled_auroc,
        "verdict": _verdict(record),
    }


def _verdict(record: Record) -> str:
    """What the report says on top; a probe that failed says so first."""
    against = failed_gates(record)
    if against:
        return plain(f"FAILED: {' '.join(gate.text for gate in against)}")
    decision = decide(record)
    return plain(f"{decision.headline} {' '.join(decision.reasons)}")


def _validation(found: Validated) -> dict[str, Any]:
    shown = [
        {
            "name": plain(one.name),
            "effect": one.effect,
            "interval": one.interval,
            "p_value": one.p_value,
            "passed": one.passed,
        }
        for one in found.interventions
    ]
    return {"behaviour": plain(found.behaviour), "interventions": shown}


def plain(text: str) -> str:
    r"""A text as a manifest can carry it: one line, printable, at most 2,000 characters.

    >>> plain("two\nlines\x1b[0m")
    'two lines[0m'
    """
    line = "".join(char for char in " ".join(text.split()) if char.isprintable())
    return line if len(line) <= _TEXT_LIMIT else f"{line[: _TEXT_LIMIT - 3]}..."
