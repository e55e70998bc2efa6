"""Who can reach the socket: this user, and nobody else, not for a moment."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.errors import ConfigError
from sidecar.ingest import endpoint
from sidecar.ingest.socket import SocketClaim
from tests.faults.process import Process
from tests.service.client import Client

EX_CONFIG = 78
NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_folder_is_made_0700_and_the_socket_0600_whatever_the_umask(serve, home):
    before = os.umask(0)
    try:
        serve()
    finally:
        os.umask(before)
    assert (mode(home / "run"), mode(home / "run" / "sidecar.sock")) == (0o700, 0o600)
    assert mode(home / "run" / "sidecar.sock.lock") == 0o600


def test_the_socket_is_private_before_it_is_sealed(serve, home, monkeypatch):
    """Between the bind and the chmod somebody could connect: it must be born private."""
    born = []

    class Watching(SocketClaim):
        def seal(self) -> None:
            born.append(mode(home / "run" / "sidecar.sock"))
            super().seal()

    monkeypatch.setattr(endpoint, "SocketClaim", Watching)
    serve()
    assert born == [0o600]


@pytest.mark.parametrize("bits", [0o755, 0o750, 0o701, 0o777, 0o1700, 0o500])
def test_a_folder_of_another_mode_refuses_to_start_and_is_left_as_it_is(serve, home, bits):
    run = home / "run"
    run.mkdir()
    run.chmod(bits)
    with pytest.raises(ConfigError, match="mode 0700"):
        serve()
    assert mode(run) == bits
    assert list(run.iterdir()) == []
    run.chmod(0o700)
    with Client(serve()) as client:
        client.register()
        client.good()


def test_a_folder_that_is_a_link_refuses_to_start(serve, home):
    (home / "elsewhere").mkdir(mode=0o700)
    (home / "run").symlink_to(home / "elsewhere")
    with pytest.raises(ConfigError, match="mode 0700"):
        serve()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_path_that_is_taken_by_something_else_is_neither_removed_nor_served(serve, home, kind):
    path = home / "run" / "sidecar.sock"
    path.parent.mkdir(mode=0o700)
    {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to(home / "artifacts")}[kind]()
    with pytest.raises(ConfigError, match="not a socket"):
        serve()
    assert path.is_symlink() if kind == "link" else path.exists()


@pytest.mark.parametrize("character", ["%", "?", "#", "\n"])
def test_a_path_that_grpc_would_read_as_another_is_refused(serve, home, character):
    """A server that listens elsewhere than in the folder that was checked listens where anybody may come."""
    with pytest.raises(ConfigError, match=r"listen\.address"):
        serve(**{"listen.address": f"unix:{home}/run{character}20/sidecar.sock"})
    assert [path.name for path in home.iterdir()] == ["artifacts"]


def test_a_path_with_a_space_is_served(serve, home):
    with Client(serve(**{"listen.address": f"unix:{home}/a run/side car.sock"})) as client:
        client.register()
        client.good()


def test_wrong_modes_end_the_command_with_78_and_the_reason(home, artifacts, capsys):
    run = home / "run"
    run.mkdir(mode=0o755)
    status = main(["serve", "--address", f"unix:{run}/s.sock", "--artifacts", str(artifacts), "--metrics-port", "0"])
    assert status == EX_CONFIG
    assert "0700" in capsys.readouterr().err


CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as client:
    try:
        client.connect(sys.argv[1])
    except OSError as error:
        sys.exit(error.errno)
"""


def connect_as(uid: int, path: Path) -> int:
    """The errno of a connect by another user, 0 if it went through."""
    command = [sys.executable, "-I", "-c", CONNECT, str(path), str(uid)]
    return subprocess.run(command, check=False, timeout=30).returncode


@pytest.mark.process
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user to try")
def test_another_user_gets_eacces_from_the_folder_and_again_from_the_socket_itself(serve, home):
    home.chmod(0o755)
    serve()
    path = home / "run" / "sidecar.sock"
    assert connect_as(os.getuid(), path) == 0
    assert connect_as(NOBODY, path) == 13  # EACCES, by the folder
    path.parent.chmod(0o755)
    assert connect_as(NOBODY, path) == 13  # EACCES, by the socket
    path.chmod(0o666)
    assert connect_as(NOBODY, path) == 0  # so it was the modes that kept it out


def test_a_stale_socket_does_not_keep_a_sidecar_away(serve, home):
    path = home / "run" / "sidecar.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Client(serve()) as client:
        client.register()
        client.good()


@pytest.mark.process
def test_the_socket_is_gone_after_a_stop_and_the_folder_stays_private(home, artifacts):
    with Process(home, artifacts) as process:
        process.event("started")
        assert mode(home / "run" / "sidecar.sock") == 0o600
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not (home / "run" / "sidecar.sock").exists()
    assert mode(home / "run") == 0o700
