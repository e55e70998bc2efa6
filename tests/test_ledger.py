"""Counts that outlive the process: what was received and never ended is booked by the next one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar import ledger
from sidecar.errors import ConfigError, DropReason, RejectReason
from sidecar.ledger import Ledger, LedgerFile, map_ledger


def booked(made: Ledger) -> None:
    made.step_batches.receive(5)
    made.step_batches.score(2)
    made.step_batches.drop(DropReason.DUPLICATE, 1)
    made.step_batches.reject(RejectReason.BAD_TEXT, 1)
    made.rows.receive(40)
    made.rows.score(30)


def test_a_process_that_was_killed_leaves_its_counts_and_the_next_books_the_gap(tmp_path):
    first = LedgerFile(tmp_path / "ledger")
    made = map_ledger(first.open())
    booked(made)  # and then nothing: no sync, no close, as after a kill
    os.close(first._fd)
    made.close()
    second = LedgerFile(tmp_path / "ledger")
    again = map_ledger(second.open())
    assert again.step_batches.counts().in_flight == 1
    assert again.book_killed() == (1, 10)
    for account in (again.step_batches, again.rows):
        assert account.counts().balanced
        assert account.counts().in_flight == 0
    assert again.step_batches.counts().dropped[DropReason.PROCESS_KILLED] == 1
    assert again.rows.counts().dropped[DropReason.PROCESS_KILLED] == 10
    assert again.book_killed() == (0, 0)
    again.close()
    second.close()


def test_another_process_sees_the_counts_while_they_are_written(tmp_path):
    file = LedgerFile(tmp_path / "ledger")
    writer = map_ledger(file.open())
    booked(writer)
    batches, rows = file.counts()
    assert (batches.received, batches.scored, batches.in_flight) == (5, 2, 1)
    assert (rows.received, rows.in_flight) == (40, 10)
    writer.close()
    file.close()


def test_a_file_of_a_version_with_fewer_reasons_keeps_its_counts(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    names = tuple(name for name in ledger._NAMES if "process_killed" not in name)
    with monkeypatch.context() as older:
        older.setattr(ledger, "_NAMES", names)
        file = LedgerFile(path)
        fd = file.open()
        os.pwrite(fd, (7).to_bytes(8, "little"), ledger._HEADER + 8 * names.index("step_batches.received"))
        os.pwrite(fd, (7).to_bytes(8, "little"), ledger._HEADER + 8 * names.index("step_batches.rejected.bad_count"))
        file.close()
    file = LedgerFile(path)
    made = map_ledger(file.open())
    assert made.step_batches.counts().received == 7
    assert made.step_batches.counts().rejected[RejectReason.BAD_COUNT] == 7
    assert made.step_batches.counts().in_flight == 0
    made.close()
    file.close()


@pytest.mark.parametrize("torn", [b"", b"{", b"\xff" * 100, b'{"words": 3}', b'{"words": ["a"]}'])
def test_a_torn_or_foreign_file_starts_at_zero(tmp_path, torn):
    path = tmp_path / "ledger"
    path.write_bytes(torn)
    file = LedgerFile(path)
    made = map_ledger(file.open())
    assert made.step_batches.counts().received == 0
    booked(made)
    made.close()
    file.close()


def test_a_second_ledger_on_the_same_file_is_refused_naming_it(tmp_path):
    file = LedgerFile(tmp_path / "ledger")
    file.open()
    with pytest.raises(ConfigError, match=str(tmp_path / "ledger")):
        LedgerFile(tmp_path / "ledger").open()
    file.close()
    again = LedgerFile(tmp_path / "ledger")
    again.open()
    again.close()


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_configuration(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(ConfigError, match=r"data\.folder"):
        LedgerFile(tmp_path / "plain" / "ledger").open()


def test_without_a_path_the_ledger_is_memory_and_says_so():
    file = LedgerFile(None)
    made = map_ledger(file.open())
    booked(made)
    assert file.where == "memory"
    assert file.counts()[0].received == 5
    made.close()
    file.close()


def test_a_symbolic_link_is_not_followed(tmp_path: Path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "ledger").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError):
        LedgerFile(tmp_path / "ledger").open()
    assert (tmp_path / "target").read_text() == "precious"
