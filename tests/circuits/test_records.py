"""Records of alarms in a folder: whole or not there, each naming the one written before it, and what was changed is found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.detecting import flat
from bench.streams import MEAN
from sidecar.circuits.chain import Chain, records_in
from sidecar.circuits.record import About, RecordError, _digest, read_record, write_record
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Settings, Watch, Watched
from sidecar.cli import main
from sidecar.live.kept import Kept
from tests.circuits.live import TICK_S, row

Capture = pytest.CaptureFixture[str]
LATER_BY_NAME = Watched("induction", "all", "m" * 64, "s" * 64, 4, flat(MEAN, 0.01))
EARLIER_BY_NAME = replace(LATER_BY_NAME, circuit="copying")
BOTH = (LATER_BY_NAME, EARLIER_BY_NAME)  # alarms of one tick come in this order
GONE = [20, 0, 0, 0, 0]
SOUND = [8, 6, 4, 1, 1]  # about the mean of the reference


class Archive:
    """What a control process writes while both circuits are silent: two alarms in one tick, again and again."""

    def __init__(self, folder: Path, source: str = "a") -> None:
        self.folder, self.kept, self._tick = folder, Kept(folder, source, 60), 0
        self._watch = Watch(BOTH, TICK_S, Settings(cool_down=3))

    def filed(self, tick: int, evidence: list[int]) -> TickRow:
        """A tick that is in a file of its own."""
        made = row(evidence, tick=tick)
        self.kept.add(tick, [made])
        self.kept.flush()
        return made

    def alarms(self) -> list[str]:
        """Go on until the next ones; the names of their records, in the order of writing."""
        while True:
            rows = [row(GONE, tick=self._tick, circuit=one.circuit) for one in BOTH]
            raised = self._watch.take(self._tick, rows)
            self.kept.add(self._tick, rows)
            self._tick += 1
            if raised:
                return [self.kept.record(one, About("d" * 64, diagnosis="traffic")) for one in raised]


def follows(folder: Path) -> list[str]:
    """The names of the records, from the first one on, each of the one that follows the one before."""
    records = {path.name: read_record(path) for path in records_in(folder)}
    by_previous = {one.previous: name for name, one in records.items()}
    found: list[str] = []
    previous = None
    while previous in by_previous:
        found.append(by_previous[previous])
        previous = records[found[-1]].content_digest
    return found


def forge(path: Path, **fields: object) -> None:
    """As somebody does who knows how."""
    changed = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(changed | {"content_digest": _digest(changed)}))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def test_two_alarms_of_one_tick_are_one_chain_in_the_order_of_writing(archive: Archive) -> None:
    names = [*archive.alarms(), *archive.alarms()]
    assert names != sorted(names)
    assert follows(archive.folder) == names
    assert list(_looked(archive.folder).breaks()) == []


def test_after_a_restart_the_chain_goes_on_behind_the_record_that_was_written_last(archive: Archive) -> None:
    names = archive.alarms()
    again = Archive(archive.folder, "b")
    names += again.alarms()  # of the same ticks: their names sort among those before
    assert follows(archive.folder) == names


def test_a_record_that_is_cut_off_costs_no_other_and_is_told(archive: Archive) -> None:
    broken = archive.folder / "1234567890-broken-00000000.json"
    broken.write_text('{"schema": "stetho')
    names = [*archive.alarms(), *archive.alarms()]
    assert "" not in names
    assert (archive.kept.records, archive.kept.records_lost) == (4, 0)
    assert archive.kept.passed_over == [broken.name]  # once, and not with each alarm
    broken.unlink()
    assert follows(archive.folder) == names


def test_a_write_that_ends_in_the_middle_leaves_no_record(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, _) = archive.alarms()
    record = read_record(archive.folder / name)
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(RecordError, match="cannot be written"):
        write_record(record, archive.folder / "other")
    assert list((archive.folder / "other").iterdir()) == []


def test_a_folder_is_replayed_whole_and_its_chain_is_verified(archive: Archive, capsys: Capture) -> None:
    many = len([*archive.alarms(), *archive.alarms()])
    assert main(["replay", str(archive.folder)]) == 0
    out = capsys.readouterr().out
    assert f"{archive.folder}: one chain" in out
    assert out.count("the same, bit for bit") == many


@pytest.mark.parametrize(
    ("tampering", "words"),
    [
        (lambda path: path.unlink(), "follows a record that is not there"),
        (lambda path: forge(path, diagnosis="noise"), "follows a record that is not there"),
        (lambda path: forge(path, previous=None), "follows no record, as"),
        (lambda path: path.write_text("{"), "is no alarm's record"),
    ],
)
def test_a_record_that_is_taken_out_or_changed_under_a_later_one_breaks_the_chain(
    archive: Archive, capsys: Capture, tampering: Callable[[Path], object], words: str
) -> None:
    (_, second, *_) = [*archive.alarms(), *archive.alarms()]
    tampering(archive.folder / second)
    assert words in "\n".join(_looked(archive.folder).breaks())
    assert main(["replay", str(archive.folder)]) == 1
    out = capsys.readouterr().out
    assert f"{archive.folder}: BROKEN CHAIN" in out
    assert words in out


def test_an_archive_file_that_cannot_be_read_costs_its_own_alarms_only_where_that_is_asked_for(
    archive: Archive, capsys: Capture
) -> None:
    first, later = archive.alarms(), [*archive.alarms(), *archive.alarms()][2:]
    needed = {one.name for name in later for one in read_record(archive.folder / name).archives}
    (lost,) = {one.name for one in read_record(archive.folder / first[0]).archives} - needed
    (archive.folder / lost).write_bytes(b"")
    assert main(["replay", str(archive.folder)]) == 65
    assert f"{lost} cannot be read as Parquet" in capsys.readouterr().err
    assert main(["replay", str(archive.folder), "--skip-unsound"]) == 1
    out = capsys.readouterr().out
    assert all(f"{name.removesuffix('.json')}: NOT COMPUTED: " in out for name in first)
    assert all(f"{name.removesuffix('.json')}: the same, bit for bit" in out for name in later)
    assert "of 6 records rest on files that cannot be read: passed over" in out


def test_in_a_long_incident_with_a_file_for_every_tick_no_alarm_goes_unrecorded(
    archive: Archive, capsys: Capture
) -> None:
    """As where one circuit after the other alarms: every record puts what is kept into a file of its own."""
    watch = Watch([LATER_BY_NAME], TICK_S)
    (alarm,) = (
        alarm
        for tick in range(250)
        for alarm in watch.take(tick, [archive.filed(tick, GONE if tick >= 230 else SOUND)])
    )
    name = archive.kept.record(alarm, About("d" * 64))
    assert (archive.kept.records_lost, archive.kept.problem) == (0, "")
    assert len(read_record(archive.folder / name).archives) > 200
    assert main(["replay", str(archive.folder / name)]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def test_an_alarm_after_a_clock_was_set_back_finds_its_evidence(archive: Archive) -> None:
    archive.kept.add(10_000, [row(SOUND, tick=10_000)])
    assert "" not in archive.alarms()
    assert archive.kept.records_lost == 0


def test_a_folder_without_records_is_not_called_sound(tmp_path: Path, capsys: Capture) -> None:
    assert main(["replay", str(tmp_path)]) == 65
    assert "there is no alarm's record" in capsys.readouterr().err


def _looked(folder: Path) -> Chain:
    chain = Chain(folder)
    chain.look()
    return chain


def _full(fd: int) -> None:
    raise OSError(28, "No space left on device")
