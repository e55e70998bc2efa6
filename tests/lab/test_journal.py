"""What is in a journal outlives its process, and is only ever found by work of the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.errors import LabError
from probes.journal import Journal

RESULTS = st.one_of(st.floats(allow_nan=False), st.lists(st.floats(allow_nan=False, allow_infinity=False)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "journal.jsonl"


def filled(path: Path, results: dict[str, Any], told: str = "these") -> Journal:
    journal = Journal(path, told)
    for key, result in results.items():
        journal.add(key, result)
    return journal


@given(results=st.dictionaries(st.text(), RESULTS, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_results_are_found_again_with_every_digit(path: Path, results: dict[str, Any]) -> None:
    path.unlink(missing_ok=True)
    filled(path, results)
    again = Journal(path, "these")
    assert again.load()
    assert {key: again[key] for key in results} == results
    assert len(again) == len(results)


def test_nothing_is_written_before_there_is_a_result(path: Path) -> None:
    assert Journal(path, "these").load()
    assert not path.parent.exists()


def test_a_line_cut_short_by_a_kill_costs_that_result_alone(path: Path) -> None:
    filled(path, {"a": 1.0, "b": 2.0})
    path.write_text(path.read_text()[:-5])
    again = Journal(path, "these")
    assert again.load()
    assert "a" in again
    assert "b" not in again
    again.add("b", 3.0)
    last = Journal(path, "these")
    last.load()
    assert (last["a"], last["b"]) == (1.0, 3.0)


def test_results_of_other_settings_are_refused_and_gone_with_the_first_new_one(path: Path) -> None:
    filled(path, {"a": 1.0})
    before = path.read_bytes()
    other = Journal(path, "others")
    assert not other.load()
    assert "a" not in other
    assert path.read_bytes() == before
    other.add("b", 2.0)
    assert not Journal(path, "these").load()


@pytest.mark.parametrize("left", ["[1]\n", "7\n", '{"key": "a", "result": 1.0}\n'])
def test_a_file_that_is_none_of_ours_counts_for_nothing(tmp_path: Path, left: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(left)
    journal = Journal(path, "these")
    assert not journal.load()
    assert len(journal) == 0


def test_when_all_is_done_nothing_is_left(path: Path) -> None:
    journal = filled(path, {"a": 1.0})
    journal.forget()
    journal.forget()
    assert not path.exists()


def test_a_journal_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"\xff\xfe")
    with pytest.raises(LabError, match="taken cannot be read"):
        Journal(tmp_path / "taken", "these").load()
    with pytest.raises(LabError, match=r"taken/journal\.jsonl cannot be written"):
        Journal(tmp_path / "taken" / "journal.jsonl", "these").add("a", 1.0)
    with pytest.raises(LabError, match=r"taken/journal\.jsonl cannot be written"):
        Journal(tmp_path / "taken" / "journal.jsonl", "these").forget()
