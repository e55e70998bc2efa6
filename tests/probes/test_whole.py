"""A folder is there whole or not at all, made once, whoever asks and whatever goes wrong."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from probes.smollm2 import ModelNotInstalledError, cache_folder, package_folder
from probes.whole import MARKER, is_whole, whole_folder


def fill(folder: Path) -> None:
    """Make two files and a note of who made them."""
    (folder / "weights").write_bytes(b"x" * 1000)
    (folder / "config").write_text("{}")
    with (folder.parent / "made_by").open("a") as log:
        log.write(f"{os.getpid()}\n")


def ask(target: Path, ready: multiprocessing.synchronize.Barrier) -> None:
    ready.wait(timeout=30)
    whole_folder(target, "v1", fill)
    os._exit(0 if is_whole(target, "v1") else 1)


def made(target: Path) -> int:
    return len((target.parent / "made_by").read_text().splitlines())


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    target = tmp_path / "model"
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(3)
    processes = [spawn.Process(target=ask, args=(target, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert made(target) == 1


def test_asking_again_makes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        assert whole_folder(tmp_path / "model", "v1", fill) == tmp_path / "model"
    assert made(tmp_path / "model") == 1


@pytest.mark.parametrize("file", ["weights", "config", MARKER])
def test_a_folder_cut_short_is_made_again(tmp_path: Path, file: str) -> None:
    target = whole_folder(tmp_path / "model", "v1", fill)
    (target / file).write_bytes(b"")
    assert not is_whole(target, "v1")
    whole_folder(target, "v1", fill)
    assert is_whole(target, "v1")
    assert made(target) == 2


@pytest.mark.parametrize("marker", ["[]", "{}", '{"source": "v1"}', '{"source": "v1", "files": []}', "\x00"])
def test_a_damaged_marker_counts_as_not_whole(tmp_path: Path, marker: str) -> None:
    target = whole_folder(tmp_path / "model", "v1", fill)
    (target / MARKER).write_text(marker)
    assert not is_whole(target, "v1")


def test_another_source_is_made_anew(tmp_path: Path) -> None:
    whole_folder(tmp_path / "model", "v1", fill)
    whole_folder(tmp_path / "model", "v2", fill)
    assert is_whole(tmp_path / "model", "v2")
    assert made(tmp_path / "model") == 2


def test_a_failure_leaves_the_old_folder_and_nothing_half_made(tmp_path: Path) -> None:
    target = whole_folder(tmp_path / "model", "v1", fill)

    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        whole_folder(target, "v2", fail)
    assert is_whole(target, "v1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "made_by", "model"]


def test_what_a_killed_process_left_behind_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".model.work-abc"
    left.mkdir()
    (left / "weights").write_bytes(b"half")
    whole_folder(tmp_path / "model", "v1", fill)
    assert not left.exists()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STETHOSCOPE_CACHE", "/somewhere/of mine")
    assert cache_folder() == Path("/somewhere/of mine")
    monkeypatch.delenv("STETHOSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/stethoscope")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/stethoscope")


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ModelNotInstalledError, match="no_such_package is not installed; run: pip install it"):
        package_folder("no_such_package", "pip install it")
