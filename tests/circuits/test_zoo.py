"""The fault zoo: what was committed is of the table that stood before it, and a short form of it is run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.circuits.toys import FOLDER
from tests.circuits.zoo.alerts import Series, fired
from tests.circuits.zoo.conditions import CONDITIONS
from tests.circuits.zoo.numerics import BFLOAT16, FLOAT32
from tests.circuits.zoo.pools import ANSWERED, RECORDED
from tests.circuits.zoo.results import DOCS, joined, read, table, table_in, write
from tests.circuits.zoo.runs import Outcome
from tests.circuits.zoo.subjects import SMOLLM2, TOY, smollm2_subject, toy_subject
from tests.circuits.zoo.variants import INT8, SCALED, SOUND
from tests.circuits.zoo.zoo import (
    COMMITTED,
    RIGHT,
    SHORT,
    Expected,
    Size,
    diagnosis_of,
    expected,
    expected_digest,
    measure,
)
from tests.export.conftest import promtool_path

__all__ = ["promtool_path"]
LEAST = 20  # runs of a condition
WAYS = 4  # of a fault of the model, among them
FARTHEST = 3  # different distances of canaries, among these
NUMERICS = (FLOAT32, BFLOAT16)


def names(numerics: str, full: bool) -> list[str]:
    """Of bfloat16 the short form takes what its floor hides, and what it does not."""
    return list(expected(TOY)[numerics]) if full or numerics == FLOAT32 else [INT8, SCALED]


def what_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["subject"], row["numerics"], row["condition"]


def test_the_table_names_every_condition_with_a_reason_and_alerts_that_there_are():
    found = expected(TOY)
    assert set(found[FLOAT32]) == set(CONDITIONS)
    assert set(found[BFLOAT16]) <= set(CONDITIONS)
    rules = (FOLDER.parents[2] / "deploy" / "prometheus" / "rules.yml").read_text()
    tables = (found, expected(SMOLLM2))
    for one in (one for told in tables for conditions in told.values() for one in conditions.values()):
        assert one.reason
        assert one.diagnosis in {"none", "model", "traffic"}
        assert all(f"alert: Stethoscope{alert}\n" in rules for alert in (*one.alerts, *one.any_of))


def test_what_was_committed_is_of_that_table_and_right_in_95_percent_of_at_least_20_runs():
    found, wanted = read(), {one: expected(one) for one in (TOY, SMOLLM2)}
    assert found["expected"] == expected_digest()
    assert Size(**found["size"]) == COMMITTED
    of = {what_of(row): row["runs"] for row in found["rows"]}
    assert set(of) == {(one, kind, name) for one in wanted for kind, each in wanted[one].items() for name in each}
    for (subject, numerics, name), runs in of.items():
        assert len({run["seed"] for run in runs}) >= LEAST
        right = [wanted[subject][numerics][name].holds(run["diagnosis"], run["alerts"]) for run in runs]
        assert sum(right) >= RIGHT * len(runs), (subject, numerics, name)


def test_the_runs_of_a_fault_of_the_model_are_of_several_faults_each_of_which_moves_canaries_otherwise():
    """A tenth more of a head is as far from sound as a tenth less, at the head; what comes of it in the circuit is not."""
    rows = [row for row in read()["rows"] if CONDITIONS[row["condition"]].variant != SOUND]
    assert rows
    for row in rows:
        far = {run["way"]: (run["farthest"], run["floors"]) for run in row["runs"]}
        assert len(far) >= WAYS, what_of(row)
        assert len(set(far.values())) == len(far), (what_of(row), far)
        assert len({farthest for farthest, _ in far.values()}) >= FARTHEST, (what_of(row), far)


def test_references_are_not_made_of_the_batchings_that_they_are_compared_with():
    assert not set(RECORDED) & set(ANSWERED)


def test_results_are_joined_only_if_they_are_of_one_table_seed_and_size(tmp_path: Path):
    found = read()
    for number, subject in enumerate((TOY, SMOLLM2)):
        rows = [row for row in found["rows"] if row["subject"] == subject]
        write(tmp_path / subject, rows, Size(**found["size"]), found["seed"])
        write(tmp_path / f"{subject} of another seed", rows, Size(**found["size"]), found["seed"] + number)
    assert joined([tmp_path / TOY, tmp_path / SMOLLM2]) == found
    with pytest.raises(ValueError, match="several"):
        joined([tmp_path / TOY, tmp_path / f"{SMOLLM2} of another seed"])


def test_the_table_that_people_read_is_that_of_the_results():
    assert table_in(DOCS) == table(read())


def test_a_run_is_right_only_if_diagnosis_and_alerts_are_those_expected():
    exact = Expected("model", "why", alerts=("CircuitModelChanged",))
    assert exact.holds("model", ["CircuitModelChanged"])
    assert not exact.holds("none", ["CircuitModelChanged"])
    assert not exact.holds("model", [])
    assert not exact.holds("model", ["CircuitModelChanged", "CircuitActivity"])
    either = Expected("traffic", "why", any_of=("CircuitActivity", "CircuitUnseenTraffic"))
    assert either.holds("traffic", ["CircuitActivity"])
    assert not either.holds("traffic", [])
    assert not either.holds("traffic", ["CircuitActivity", "CircuitNoData"])


def test_alarms_of_the_stream_from_before_canaries_moved_are_a_diagnosis_too():
    quiet = Outcome(0, "", (), (), None, (), None, "", 0.0, 0.0, 0.0, 0.0)
    assert diagnosis_of(quiet, []) == "none"
    assert diagnosis_of(quiet, ["CircuitUnseenTraffic"]) == "traffic"
    both = Outcome(0, "", ("traffic",), ("less",), 1, ("going_on",), 2, "blocks.0", 9.0, 9.0, 0.9, 0.0)
    assert diagnosis_of(both, ["CircuitModelChanged"]) == "model+traffic"


def test_promtool_tells_which_of_the_shipped_alerts_fire_in_each_of_several_runs(promtool_path: str, tmp_path: Path):
    def series(moved: float, stale: float) -> Series:
        shown = {
            'circuit_canary_moved{circuit="a"}': moved,
            'circuit_state{circuit="a",state="stale"}': stale,
            "deploy_window{}": 0.0,
        }
        return Series([shown] * 12)

    told = fired(promtool_path, [series(0, 0), series(1, 1), series(1, 0)], tmp_path)
    assert told == [(), ("CircuitModelChanged", "CircuitSpecStale"), ("CircuitModelChanged",)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, full: bool):
    return toy_subject(tmp_path_factory.mktemp("toy"), seed=7, many=(COMMITTED if full else SHORT).texts)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_on_the_toy_every_condition_is_diagnosed(toy, numerics: str, promtool_path: str, full: bool):
    """Short: 32 ticks after the change, 6 where the model changes, in all conditions in float32. FULL: of the committed size."""
    size = COMMITTED if full else SHORT
    for row in measure(toy, numerics, names(numerics, full), size, 7, promtool_path, print):
        assert row["right"] >= RIGHT * len(row["runs"]), row


@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_on_smollm2_conditions_are_diagnosed(
    smollm2: Path, tmp_path: Path, numerics: str, promtool_path: str, full: bool
):
    """Short: what is shipped, in two runs of two conditions, on a few texts. FULL: of the committed size."""
    size = COMMITTED if full else replace(SHORT, runs=2, texts=12)
    subject = smollm2_subject(tmp_path, 7, size.texts, smollm2)
    chosen = names(numerics, full) if full else ["traffic_stops", SCALED] if numerics == FLOAT32 else [INT8]
    for row in measure(subject, numerics, chosen, size, 7, promtool_path, print):
        assert row["right"] >= RIGHT * len(row["runs"]), row
