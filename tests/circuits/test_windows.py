"""Deploy windows are declared one after another, in a folder that is there, and only an open one is closed."""

from __future__ import annotations

import getpass
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from sidecar.cli import main
from sidecar.live.windows import FILE, WindowError, declare, is_open, windows


def test_those_who_declare_at_once_make_one_chain(tmp_path: Path) -> None:
    together = Barrier(8)

    def several(who: int) -> None:
        together.wait(timeout=10)
        for at in range(10):
            declare(tmp_path, at, at + 60, f"{who}", at)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(several, range(8)))
    assert len(windows(tmp_path)) == 80


@pytest.mark.parametrize("what", [["open", "--for", "30m", "--why", "x"], ["close", "--why", "x"], ["list"]])
def test_a_folder_that_is_not_there_is_refused_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: list[str]
) -> None:
    folder = tmp_path / "archvie"
    assert main(["deploy-window", what[0], str(folder), *what[1:]]) == 65
    assert "there is no such folder" in capsys.readouterr().err
    assert not folder.exists()


def test_closing_what_is_not_open_is_an_error_and_leaves_no_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    close = ["deploy-window", "close", str(tmp_path), "--why", "done"]
    assert main(close) == 65
    assert "no deploy window is open" in capsys.readouterr().err
    assert not (tmp_path / FILE).exists()
    assert main(["deploy-window", "open", str(tmp_path), "--for", "30m", "--why", "weights"]) == 0
    assert [main(close), main(close)] == [0, 65]
    assert len(windows(tmp_path)) == 2


@pytest.mark.parametrize("unknown", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username set")])
def test_a_user_without_a_name_is_told_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: Exception
) -> None:
    """As in a container that runs under any uid; KeyError before Python 3.13, OSError since."""

    def nobody() -> str:
        raise unknown

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert main(["deploy-window", "open", str(tmp_path), "--for", "30m", "--why", "weights"]) == 0
    assert windows(tmp_path)[0].who == f"uid {os.getuid()}"


def test_a_window_that_ended_by_itself_is_not_closed_once_more(tmp_path: Path) -> None:
    declare(tmp_path, 100, 200, "weights", 100)
    with pytest.raises(WindowError, match="no deploy window is open"):
        declare(tmp_path, 200, 200, "done", 200)


def test_a_window_whose_end_is_cut_off_is_open_until_the_time_it_was_declared_for_and_no_longer(tmp_path: Path) -> None:
    """The newest entry is chained to by nobody: what the documents say of it is what holds."""
    declare(tmp_path, 100, 200, "weights", 100)
    declare(tmp_path, 150, 150, "done", 150)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert is_open(windows(tmp_path), 160)
    assert not is_open(windows(tmp_path), 200)
