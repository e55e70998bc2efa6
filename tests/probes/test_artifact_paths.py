"""Paths out of the root, and things that are not files, are refused within a second."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from probes.artifact import MANIFEST, WEIGHTS, load_artifact
from probes.registry import FolderWatch, load_folder
from sidecar.errors import ArtifactError, ArtifactReason
from tests.probes.broken import refusal
from tests.probes.builders import write_artifact


@pytest.mark.parametrize("written", ["../outside", "probe_one/../../outside", "../artifacts/probe_one"])
def test_traversal_is_refused_even_where_it_comes_back(root: Path, written: str) -> None:
    write_artifact(root.parent, "outside")
    assert refusal(root / written, root).reason is ArtifactReason.UNSAFE_PATH


def test_absolute_path_elsewhere_is_refused(root: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path, "outside")
    assert refusal(tmp_path / "outside", root).reason is ArtifactReason.UNSAFE_PATH
    assert refusal(root / "/etc", root).reason is ArtifactReason.UNSAFE_PATH


def test_root_that_is_a_prefix_of_another_name_is_not_its_root(root: Path) -> None:
    write_artifact(root.with_name("artifacts_of_others"), "probe_one")
    assert refusal(root.with_name("artifacts_of_others") / "probe_one", root).reason is ArtifactReason.UNSAFE_PATH


def test_nul_in_the_path_is_refused(root: Path) -> None:
    assert refusal(root / "probe\0one", root).reason is ArtifactReason.UNSAFE_PATH


def test_folder_that_is_a_link_out_of_the_root_is_refused(root: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path, "outside")
    (root / "linked").symlink_to(tmp_path / "outside")
    assert refusal(root / "linked", root).reason is ArtifactReason.UNSAFE_PATH


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_file_that_is_a_link_out_of_the_root_is_refused(folder: Path, root: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert refusal(folder, root).reason is ArtifactReason.UNSAFE_PATH


def test_link_that_leads_to_itself_is_refused(folder: Path, root: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)
    assert refusal(folder, root).reason is ArtifactReason.UNSAFE_PATH


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_fifo_is_refused_without_waiting_for_a_writer(folder: Path, root: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


def test_socket_is_refused(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / WEIGHTS).unlink()
    monkeypatch.chdir(folder)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(WEIGHTS)
        assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


def test_device_is_refused(folder: Path, root: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: reading it never ends
    except PermissionError:
        # Without the right to make a device: the real one, with its folder as the root.
        assert refusal_of_device() is ArtifactReason.NOT_REGULAR
    else:
        assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


def refusal_of_device() -> ArtifactReason:
    from probes.safefile import read_regular

    with pytest.raises(ArtifactError) as caught:
        read_regular(Path("/dev/zero"), root=Path("/dev"), limit_bytes=10)
    return caught.value.reason


def test_folder_in_place_of_a_file_is_refused(folder: Path, root: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert refusal(folder, root).reason is ArtifactReason.NOT_REGULAR


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_missing_file_is_refused(folder: Path, root: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder, root).reason is ArtifactReason.MISSING_FILE


@pytest.mark.parametrize(("name", "size"), [(MANIFEST, (256 << 10) + 1), (WEIGHTS, (64 << 20) + 1)])
def test_file_over_its_bound_is_refused(folder: Path, root: Path, name: str, size: int) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(size)
    assert refusal(folder, root).reason is ArtifactReason.TOO_LARGE


def test_refusal_names_the_entry_and_no_path_before_it(root: Path) -> None:
    error = refusal(root / "absent", root)
    assert error.reason is ArtifactReason.MISSING_FILE
    assert str(root) not in str(error)


def test_kubernetes_layout_of_links_loads_and_follows_a_swap(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    write_artifact(mount / "..2026_01_01", "probe_one", version="1.0.0")
    write_artifact(mount / "..2026_01_02", "probe_one", version="1.0.1")
    (mount / "..data").symlink_to("..2026_01_01")
    (mount / "probe_one").symlink_to("..data/probe_one")
    assert [artifact.manifest.version for artifact in load_folder(mount, limit=4)] == ["1.0.0"]
    watch = FolderWatch(mount)
    (mount / "..data_tmp").symlink_to("..2026_01_02")
    (mount / "..data_tmp").rename(mount / "..data")
    assert watch.changed()
    assert [artifact.manifest.version for artifact in load_folder(mount, limit=4)] == ["1.0.1"]


def test_kubernetes_layout_with_linked_files_loads(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    write_artifact(mount / "probe_one", "..2026_01_01", name="probe_one")
    (mount / "probe_one" / "..data").symlink_to("..2026_01_01")
    for name in (MANIFEST, WEIGHTS):
        (mount / "probe_one" / name).symlink_to(f"..data/{name}")
    assert load_artifact(mount / "probe_one", root=mount).manifest.name == "probe_one"
