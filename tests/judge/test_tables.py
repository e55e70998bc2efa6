"""Signals calibrated by a table: the service's probability is the table's, and its decisions are the lab's, to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.artifact import load_artifact, save_artifact
from probes.isotonic import along
from probes.manifest import Calibration
from probes.quality.scaling import probabilities
from probes.registry import load_folder
from sidecar.clock import SystemClock
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.judge.calibration import Calibrations, sigmoid
from sidecar.judge.thresholds import Thresholds
from sidecar.reading.plan import build_plan
from sidecar.snapshot import EndedRequest
from sidecar.types import EngineId, RequestId
from sidecar.worker import planwire
from tests.builders import MODEL, WIDTH, axis, make_signal, manifest_fields, wire_batch, write_control, write_probe
from tests.hot import Hot
from tests.probes.tables import tables

KNOTS = ((-1.0, 0.05), (0.0, 0.05), (1.0, 0.5), (2.0, 0.5), (3.0, 0.95))
TABLE = {"kind": "isotonic", "knots": KNOTS}
SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.9, 1.0]))


@given(table=tables(), share=SHARES, scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), data=st.data())
def test_what_is_over_a_threshold_is_what_the_lab_says_is(table, share, scores, data) -> None:
    """Also for scores on knots, where steps meet thresholds."""
    asked = np.array(scores + data.draw(st.lists(st.sampled_from(table[:, 0].tolist()))))
    signals = [
        make_signal("line", threshold=share),
        make_signal("table", threshold=share, knots=tuple(map(tuple, table))),
    ]
    calibrations, thresholds = Calibrations(signals), Thresholds(signals)
    lines = calibrations.lines(np.stack([asked, asked], axis=1))
    near = (lines >= thresholds.near(np.full((1, 2), 99, np.int32)))[:, 1]
    told = calibrations.probabilities(lines[:, 1], np.ones(len(asked), np.intp))
    lab = probabilities(Calibration(kind="isotonic", knots=tuple(map(tuple, table))), asked)
    assert np.array_equal(told, lab)
    assert np.array_equal(near & (told > share), lab > share)


def test_lines_beside_a_table_are_calibrated_as_ever() -> None:
    signals = [make_signal("a", scale=2.0, offset=1.0), make_signal("b", knots=KNOTS), make_signal("c", scale=0.5)]
    scores = np.array([[0.3, 0.3, 0.3], [-2.0, 0.5, 9.0]])
    calibrations = Calibrations(signals)
    lines = calibrations.lines(scores)
    told = np.stack([calibrations.probabilities(row, np.arange(3)) for row in lines])
    assert told[:, 0].tolist() == sigmoid(2 * scores[:, 0] + 1).tolist()
    assert told[:, 2].tolist() == sigmoid(scores[:, 2] / 2).tolist()
    assert told[:, 1].tolist() == along(np.array(KNOTS), scores[:, 1]).tolist()
    tokens = calibrations.of_tokens(scores.astype(np.float32))
    assert tokens.dtype == np.float32
    assert np.allclose(tokens, told, atol=1e-6)


def isotonic_probe(root: Path, name: str, threshold: float, **more) -> None:
    fields = {**manifest_fields("x")["threshold"], "probability": threshold, **more}
    write_probe(root, name, threshold=fields, calibration=TABLE)


@pytest.mark.parametrize(
    ("score", "probability", "fires"),
    [
        (-9.0, 0.05, False),
        (0.5, 0.275, False),
        (1.5, 0.5, False),  # the flat stretch that the threshold lies on
        (2.5, 0.725, True),
        (99.0, 0.95, True),
    ],
)
def test_a_request_is_scored_counted_and_flagged_by_its_table(tmp_path, score, probability, fires) -> None:
    isotonic_probe(tmp_path, "stepped", 0.5)
    write_control(tmp_path)
    ended: list[EndedRequest] = []
    hot = Hot(SystemClock(), ended.append, load_folder(tmp_path, limit=9))
    hot.register()
    rows = np.zeros((3, WIDTH), dtype=np.float32)
    rows[:, 0] = score
    result = hot.submit(wire_batch(rows, [("a", range(3))]))
    assert bool([one for verdict in result.verdicts for one in verdict.signals]) is fires
    hot.pipeline.judge.finish(EngineId("engine-0"), (RequestId("a"),))
    (signal,) = hot.snapshot().signals
    assert signal.scores.total == pytest.approx(3 * probability, abs=1e-5)
    ((told,),) = [one.scores for one in ended]
    assert (told.score, told.threshold, told.flagged) == (pytest.approx(probability, abs=1e-7), 0.5, fires)


@pytest.mark.parametrize(("tokens", "fires"), [(3, False), (4, True)])
def test_each_length_has_its_own_threshold_on_the_table(tmp_path, tokens, fires) -> None:
    bucket = {"min_tokens": 4, "probability": 0.4, "measured_fpr": 0.0, "fpr_interval": [0.0, 0.1]}
    isotonic_probe(tmp_path, "stepped", 0.5, buckets=[{**bucket, "benign_rows": 99, "certified": True}])
    hot = Hot(SystemClock(), artifacts=load_folder(tmp_path, limit=9))
    hot.register()
    rows = np.zeros((tokens, WIDTH), dtype=np.float32)
    rows[:, 0] = 1.5
    assert bool(hot.submit(wire_batch(rows, [("a", range(tokens))])).verdicts) is fires


def test_a_table_arrives_at_the_worker_as_it_was(tmp_path) -> None:
    isotonic_probe(tmp_path, "stepped", 0.5)
    plan = build_plan(1, load_folder(tmp_path, limit=9), MODEL)
    assert plan.signals[0].knots == KNOTS
    assert planwire.from_memory(planwire.to_memory(plan)).signals == plan.signals


@pytest.mark.parametrize(
    "knots", [[[0.0, 0.5], [0.0, 0.6]], [[0.0, 0.6], [1.0, 0.5]], [[0.0, 0.5]], [["0", 0.5], [1.0, 1.0]]]
)
def test_an_artifact_with_an_unsound_table_is_refused(tmp_path, knots) -> None:
    fields = manifest_fields("odd", calibration={"kind": "isotonic", "knots": knots})
    with pytest.raises(ArtifactError) as refused:
        save_artifact(tmp_path / "odd", fields, axis(0), np.zeros(1, np.float32))
    assert refused.value.reason is ArtifactReason.BAD_MANIFEST
    assert "calibration" in refused.value.text
    assert not (tmp_path / "odd").exists()


def test_a_table_is_part_of_what_is_digested(tmp_path) -> None:
    isotonic_probe(tmp_path, "stepped", 0.5)
    path = tmp_path / "stepped" / "manifest.json"
    path.write_text(path.read_text().replace("0.95", "0.96"))
    with pytest.raises(ArtifactError) as refused:
        load_artifact(tmp_path / "stepped", root=tmp_path)
    assert refused.value.reason is ArtifactReason.BAD_DIGEST
