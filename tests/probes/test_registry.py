"""The folder in force: all sound or none loaded, and a watch that sees every change and never raises."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from probes.artifact import MANIFEST, WEIGHTS
from probes.registry import FolderWatch, load_folder
from sidecar.errors import ArtifactError, ArtifactReason
from tests.probes.builders import write_artifact


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("charlie", "alpha", "bravo"):
        write_artifact(tmp_path / "root", name)
    return tmp_path / "root"


def names(root: Path, limit: int = 10) -> list[str]:
    return [artifact.manifest.name for artifact in load_folder(root, limit=limit)]


def refusal(root: Path, limit: int = 10) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        load_folder(root, limit=limit)
    return caught.value


def test_artifacts_come_sorted_by_name_whatever_their_folders_are_called(root: Path) -> None:
    (root / "alpha").rename(root / "zulu")
    assert names(root) == ["alpha", "bravo", "charlie"]


def test_two_artifacts_of_one_name_are_refused(root: Path) -> None:
    shutil.copytree(root / "alpha", root / "another")
    error = refusal(root)
    assert error.reason is ArtifactReason.DUPLICATE_NAME
    assert "another" in error.text
    assert "alpha" in error.text


def test_one_bad_artifact_refuses_all_and_is_named(root: Path) -> None:
    (root / "bravo" / MANIFEST).write_text("{}")
    error = refusal(root)
    assert error.reason is ArtifactReason.BAD_MANIFEST
    assert error.text.startswith("bravo: ")


def test_folder_without_a_manifest_is_refused_not_passed_over(root: Path) -> None:
    (root / "empty").mkdir()
    error = refusal(root)
    assert (error.reason, error.text.split(":")[0]) == (ArtifactReason.MISSING_FILE, "empty")


def test_broken_link_is_refused_not_passed_over(root: Path) -> None:
    (root / "delta").symlink_to(root / "gone")
    assert refusal(root).reason is ArtifactReason.MISSING_FILE


def test_fifo_in_the_root_is_refused(root: Path) -> None:
    os.mkfifo(root / "delta")
    assert refusal(root).reason is ArtifactReason.NOT_REGULAR


def test_hidden_entries_and_plain_files_are_passed_over(root: Path) -> None:
    (root / ".git").mkdir()
    (root / "..2026_01_01").mkdir()
    (root / "..data").symlink_to("..2026_01_01")
    (root / "README.md").write_text("three artifacts")
    assert names(root) == ["alpha", "bravo", "charlie"]


def test_limit_is_kept(root: Path) -> None:
    assert len(names(root, limit=3)) == 3
    assert refusal(root, limit=2).reason is ArtifactReason.TOO_MANY


def test_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone").reason is ArtifactReason.MISSING_FILE


def test_root_that_is_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    assert names(tmp_path / "linked") == ["alpha", "bravo", "charlie"]


def rewrite(root: Path) -> None:
    write_artifact(root, "alpha", version="1.0.1")


CHANGES: list[Callable[[Path], object]] = [
    rewrite,
    lambda root: write_artifact(root, "delta"),
    lambda root: shutil.rmtree(root / "alpha"),
    lambda root: (root / "alpha" / WEIGHTS).unlink(),
    lambda root: os.utime(root / "alpha" / MANIFEST, ns=(1, 1)),
    shutil.rmtree,
]


@pytest.mark.parametrize("change", CHANGES)
def test_watch_sees_a_change_once(root: Path, change: Callable[[Path], object]) -> None:
    watch = FolderWatch(root)
    assert not watch.changed()
    change(root)
    assert watch.changed()
    assert not watch.changed()


def test_watch_survives_what_loading_refuses(root: Path) -> None:
    watch = FolderWatch(root)
    (root / "loop").symlink_to(root / "loop")
    (root / "half").mkdir()
    (root / "half" / MANIFEST).write_text('{"name": ')
    assert watch.changed()
    os.mkfifo(root / "half" / WEIGHTS)
    assert watch.changed()
    assert not watch.changed()


def test_watch_on_a_root_that_comes_later_sees_it_come(tmp_path: Path) -> None:
    watch = FolderWatch(tmp_path / "later")
    assert not watch.changed()
    write_artifact(tmp_path / "later", "alpha")
    assert watch.changed()
