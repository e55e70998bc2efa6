"""The archive: what is written is read, whole or not at all, and nothing is believed that is not a sketch."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from sidecar.circuits.archive import ArchiveError, ArchiveWriter, read_archive, write_archive
from sidecar.circuits.sketch import LiveSketch
from sidecar.cli import main
from tests.circuits.live import read, row, step, two


def sketched(ticks: int = 3, source: str = "a", seed: int = 0) -> list:
    bank, rng = two(), np.random.default_rng(seed)
    live, made = LiveSketch(bank, source, 60), []
    for tick in range(ticks):
        live.add(read(bank, step(rng, 100)))
        made += live.close(tick)
    return made


def test_what_is_written_is_read_and_the_same_rows_give_the_same_bytes(tmp_path):
    rows = sketched()
    one = write_archive(tmp_path / "one.parquet", rows)
    other = write_archive(tmp_path / "other.parquet", rows[::-1])
    assert sorted(read_archive(one.path), key=lambda it: it.key) == sorted(rows, key=lambda it: it.key)
    assert one.digest == other.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_archive_is_never_written_over(tmp_path):
    write_archive(tmp_path / "a.parquet", sketched(1))
    before = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(ArchiveError, match="a file already"):
        write_archive(tmp_path / "a.parquet", sketched(2))
    assert (tmp_path / "a.parquet").read_bytes() == before


def test_content_and_name_are_on_the_disk_before_the_file_is_told_and_content_comes_first(tmp_path, monkeypatch):
    path, synced, real = tmp_path / "a.parquet", [], os.fsync

    def noted(opened):
        real(opened)
        synced.append((Path(f"/proc/self/fd/{opened}").readlink(), path.exists()))

    monkeypatch.setattr(os, "fsync", noted)
    write_archive(path, sketched(1))
    (content, named_before), (folder, named_after) = synced
    assert (content.parent, content.name != path.name, named_before) == (tmp_path, True, False)
    assert (folder, named_after) == (tmp_path, True)


def test_a_file_system_that_syncs_no_folders_is_written_to_and_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    real = os.fsync

    def failing(number):
        def sync(opened):
            if Path(f"/proc/self/fd/{opened}").readlink().is_dir():
                raise OSError(number, os.strerror(number))
            real(opened)

        return sync

    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    assert read_archive(write_archive(tmp_path / "a.parquet", sketched(1)).path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(ArchiveError, match="cannot be written"):
        write_archive(tmp_path / "b.parquet", sketched(1))


def test_unsound_files_of_a_folder_are_all_named_and_passed_over_only_where_that_is_asked_for(tmp_path, capsys):
    folder, out = tmp_path / "kept", tmp_path / "out.parquet"
    sound = str(write_archive(folder / "a.parquet", sketched()).path)
    (folder / "b.parquet").touch()  # as a power loss once left it
    (folder / "c.parquet").write_text("hello")
    assert main(["sketch", "show", sound]) == 0
    told = capsys.readouterr().out
    for command in (["show", str(folder)], ["merge", str(folder), "--out", str(out)]):
        assert main(["sketch", *command]) == 65
        answer = capsys.readouterr()
        assert answer.out == ""
        assert all(f"{folder / name} cannot be read as Parquet" in answer.err for name in ("b.parquet", "c.parquet"))
    assert not out.exists()
    assert main(["sketch", "show", str(folder), "--skip-unsound"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(told + "2 unsound files passed over:\n")
    assert len(shown.splitlines()) == len(told.splitlines()) + 3
    assert main(["sketch", "merge", str(folder), "--out", str(out), "--skip-unsound"]) == 0
    assert "2 unsound files passed over:" in capsys.readouterr().out
    assert sorted(row.key for row in read_archive(out)) == sorted(row.key for row in sketched())


def test_a_path_that_is_not_there_is_never_passed_over_and_nothing_is_never_said_to_be_sound(tmp_path, capsys):
    sound, empty = write_archive(tmp_path / "a.parquet", sketched()).path, tmp_path / "b.parquet"
    empty.touch()
    assert main(["sketch", "show", str(sound), str(tmp_path / "slip.parquet"), "--skip-unsound"]) == 65
    assert "slip.parquet: no such file" in capsys.readouterr().err
    assert main(["sketch", "show", str(empty), "--skip-unsound"]) == 65
    assert f"{empty}: no rows; {empty} cannot be read" in capsys.readouterr().err


def test_other_parquet_and_other_bytes_are_refused_by_name(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "text.parquet").write_text("hello")
    parquet.write_table(pa.table({"rows": [1]}), tmp_path / "table.parquet")
    for name in ("text.parquet", "table.parquet", "none.parquet"):
        with pytest.raises(ArchiveError, match=name):
            read_archive(tmp_path / name)


@pytest.mark.parametrize(
    ("column", "value"), [("scores", [1, 2]), ("rows", -1), ("tick_s", 0), ("sources", []), ("evidence", [])]
)
def test_a_row_that_is_no_sketch_is_refused(tmp_path, column, value):
    from pyarrow import parquet

    path = write_archive(tmp_path / "a.parquet", sketched(1)).path
    table = parquet.read_table(path)
    at = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    import pyarrow as pa

    changed = table.set_column(at, table.schema.field(at), pa.array([value, *values[1:]], table.schema.field(at).type))
    parquet.write_table(changed, tmp_path / "b.parquet")
    with pytest.raises(ArchiveError, match="row 1"):
        read_archive(tmp_path / "b.parquet")


def test_the_writer_keeps_a_bounded_number_of_rows_and_counts_what_it_could_not_write(tmp_path):
    writer = ArchiveWriter(tmp_path, "a", rows_limit=10)
    files = [writer.add([one]) for one in sketched(6)]
    assert writer.rows_written == 30
    assert [one is not None for one in files].index(True) == 9
    lost = ArchiveWriter(tmp_path / "file" / "folder", "a")
    (tmp_path / "file").write_text("in the way")
    lost.add(sketched(1))
    assert lost.flush() is None
    assert lost.rows_lost == 6
    assert writer.flush() is not None
    assert writer.flush() is None
    assert sum(len(read_archive(path)) for path in tmp_path.glob("*.parquet")) == 36


def test_merging_files_on_the_command_line_is_merging_their_rows(tmp_path, capsys):
    files = [
        write_archive(tmp_path / f"{name}.parquet", sketched(source=name, seed=at)).path for at, name in enumerate("ab")
    ]
    assert main(["sketch", "merge", *map(str, files), "--out", str(tmp_path / "both.parquet")]) == 0
    assert (
        main(["sketch", "merge", *map(str, files[::-1]), str(files[0]), "--out", str(tmp_path / "again.parquet")]) == 0
    )
    assert "18 rows; 18 that came again" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "both.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    both = read_archive(tmp_path / "both.parquet")
    each = [one for path in files for one in read_archive(path)]
    assert sum(one.counts.sum() for one in both) == sum(one.counts.sum() for one in each)
    assert all(one.sources == ("a", "b") for one in both)


def test_merging_two_specs_is_refused_on_the_command_line_and_nothing_is_written(tmp_path, capsys):
    files = [
        write_archive(tmp_path / f"{one}.parquet", [row([1, 2], spec_hash=one * 64, source=one)]).path for one in "ab"
    ]
    assert main(["sketch", "merge", *map(str, files), "--out", str(tmp_path / "out.parquet")]) == 65
    assert "two of its spec" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_a_folder_is_all_its_files_to_show_and_merge(tmp_path, capsys):
    files = [str(write_archive(tmp_path / "kept" / f"{at}.parquet", sketched(source=at)).path) for at in ("a", "b")]
    assert main(["sketch", "merge", *files, "--out", str(tmp_path / "of-files.parquet")]) == 0
    assert main(["sketch", "merge", str(tmp_path / "kept"), "--out", str(tmp_path / "of-folder.parquet")]) == 0
    assert (tmp_path / "of-files.parquet").read_bytes() == (tmp_path / "of-folder.parquet").read_bytes()
    capsys.readouterr()
    assert main(["sketch", "show", *files]) == 0
    told = capsys.readouterr().out
    assert main(["sketch", "show", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out == told


def test_nothing_is_an_error_that_says_so_and_is_never_merged(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    empty = write_archive(tmp_path / "empty.parquet", []).path
    out = tmp_path / "out.parquet"
    for path, told in (
        (empty, f"{empty}: no rows"),
        (tmp_path / "folder", f"{tmp_path / 'folder'}: no Parquet file in this folder"),
        (tmp_path / "none.parquet", f"{tmp_path / 'none.parquet'}: no such file"),
    ):
        for command in (["show", str(path)], ["merge", str(path), "--out", str(out)]):
            assert main(["sketch", *command]) == 65
            assert capsys.readouterr() == ("", f"sidecar: {told}\n")
    assert not out.exists()


def test_columns_stay_apart_whatever_stands_in_them(tmp_path, capsys):
    made = [row([10**11, 0, 0, 0, 10**11], slice_="a route of a long name"), row([0] * 5, slice_="b")]
    for one, tokens in zip(made, (10**12, 0), strict=True):
        one.counts[:2] = tokens, tokens // 4
    path = write_archive(tmp_path / "a.parquet", made).path
    assert main(["sketch", "show", str(path)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()[2:5]
    assert re.split(r"\s{2,}", head.strip())[:5] == ["slice", "rows", "engaged", "sessions", "share"]
    cells = ["a route of a long name", "1000000000000", "25.0%", "200000000000", "50.0%"]
    assert re.split(r"\s{2,}", first.strip())[:5] == cells
    assert re.split(r"\s{2,}", second.strip())[:5] == ["b", "0", "-", "0", "-"]


def test_show_says_who_was_watched_when_and_how_engaged(tmp_path, capsys):
    path = write_archive(tmp_path / "a.parquet", sketched()).path
    assert main(["sketch", "show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("copying  spec ssssssssssss  model mmmmmmmmmmmm  2 nodes")
    assert "1970-01-01 00:00 to 1970-01-01 00:03 UTC, 3 ticks of 60 s" in lines[1]
    assert len([one for one in lines if one.strip().startswith(("chat", "code", "other"))]) == 6
    assert "sinks" in lines[3]
