"""What holds only where there is a ring: that it is used, when it is not, and that leaving it loses nothing."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sidecar.address import ring_path
from sidecar.ring import Ring, Shape
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.tap.ring_join import RingRefusedError, join_ring
from sidecar.types import TapLedgerCounts
from tests.tap.clients import MakeClient, connected
from tests.tap.receiver import Receiver, control
from tests.tap.ring_host import DEADLINE_S, SHAPE, RingHost
from tests.tap.samples import IDENTITY, BrokenStates, captured, segment, states, step
from tests.waiting import until


@pytest.fixture
def transport() -> str:
    return "ring"


@pytest.fixture
def host(receiver: Receiver) -> RingHost:
    assert receiver.host is not None
    return receiver.host


@pytest.fixture
def make_client(make_client: MakeClient) -> MakeClient:
    """Here one is of use only once it is connected."""
    return lambda **limits: connected(make_client(**limits))


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.getMessage().startswith("transport=")]


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _rings() -> Counter[int]:
    """Descriptors of rings' memory in this process, by the memory that they are of."""
    found: Counter[int] = Counter()
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if "stethoscope-ring" in str(one.readlink()):
                found[one.stat().st_ino] += 1
    return found


@pytest.fixture
def mapped_here() -> Callable[[], int]:
    """Descriptors of rings that the test made: other tests' services in this process have theirs.

    The host keeps two for each ring until it stops: its own, and its mapping's.
    """
    before = _rings()
    return lambda: sum(count for memory, count in _rings().items() if memory not in before)


def test_everything_but_the_settings_goes_by_the_ring(receiver: Receiver, make_client: MakeClient) -> None:
    client = make_client()
    sent = [step("r", 3 * number, 3) for number in range(20)]
    for one in sent:
        assert client.submit(one)
    client.finish(["r"])
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes)
    assert client.counts() == TapLedgerCounts(sent=20, ok=20)
    assert receiver.by_ring == len(receiver.requests)
    kinds = [request.WhichOneof("body") for request in receiver.requests]
    assert (kinds[0], kinds[-3:]) == ("traffic", ["finished", "traffic", "goodbye"])
    rows = receiver.rows(1)["r"]
    wanted = np.concatenate([one.tensors[0][1].rows for one in sent])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.stack([rows[position] for position in range(60)]), wanted)


def test_a_step_larger_than_a_slot_goes_as_several(receiver: Receiver, make_client: MakeClient) -> None:
    client = make_client()
    big = step("big", rows=700, columns=2048)
    assert big.nbytes > SHAPE.slot_bytes
    assert client.submit(big)
    until(lambda: client.counts().ok == 3)
    assert receiver.by_ring >= 3
    rows = receiver.rows(1)["big"]
    np.testing.assert_array_equal(
        np.stack([rows[position] for position in range(700)]),
        big.tensors[0][1].rows,  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("read", [True, False], ids=["read and not answered", "not even read"])
def test_what_a_broken_ring_leaves_unanswered_goes_again_by_grpc_and_is_counted_once(
    receiver: Receiver, host: RingHost, make_client: MakeClient, caplog: pytest.LogCaptureFixture, read: bool
) -> None:
    client = make_client(report_s=3600, queue_s=60)
    receiver.wait(lambda r: r.requests)
    answer, mute = receiver.answer, threading.Event()
    mute.set()
    receiver.answer = lambda batch: None if mute.is_set() else answer(batch)
    if not read:
        receiver.freeze()
    for number in range(SHAPE.slots + 3):
        assert client.submit(step("r", number))
    until(lambda: client.counts().sent == SHAPE.slots)
    if read:
        receiver.wait(lambda r: len(r.batches) == SHAPE.slots)
    mute.clear()
    host.leave()
    receiver.thaw()
    until(lambda: client.counts().ok == SHAPE.slots + 3)
    assert client.counts() == TapLedgerCounts(sent=SHAPE.slots + 3, ok=SHAPE.slots + 3)
    assert sorted(receiver.rows(1)["r"]) == list(range(SHAPE.slots + 3))
    assert len(receiver.repeated) >= (SHAPE.slots if read else 0)
    assert "transport=grpc why=the ring has ended" in _lines(caplog)
    assert client.connected
    assert client.errors == 0
    assert all(ring.left for ring in host.rings)


def test_a_ring_that_breaks_in_the_middle_of_traffic_loses_no_step(
    receiver: Receiver, host: RingHost, make_client: MakeClient
) -> None:
    client = make_client(queue_s=60, queue_batches=1000)
    for number in range(300):
        assert client.submit(step("r", number))
        if number == 150:
            receiver.wait(lambda r: len(r.batches) > 20)
            host.leave()
    until(lambda: client.counts().ok == 300)
    assert client.counts() == TapLedgerCounts(sent=300, ok=300)
    assert sorted(receiver.rows(1)["r"]) == list(range(300))
    assert receiver.by_ring < len(receiver.requests)
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes == 1)


def test_an_idle_ring_that_ends_is_left_at_once(receiver: Receiver, host: RingHost, make_client: MakeClient) -> None:
    make_client(report_s=0.01)
    until(lambda: receiver.by_ring > 1)
    host.leave()
    by_ring = receiver.by_ring
    receiver.wait(lambda r: len(r.requests) > by_ring + 5)  # the reports go on


def test_a_refused_ticket_leaves_grpc_and_a_line_that_says_so(
    receiver: Receiver, host: RingHost, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    host.grants = False
    caplog.set_level(logging.INFO)
    client = make_client()
    assert client.submit(step())
    until(lambda: client.counts().ok == 1)
    assert receiver.by_ring == 0
    assert _lines(caplog) == ["transport=grpc why=the sidecar refused the ticket"]


def test_without_an_offer_the_line_says_that_too(
    address: str, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    receiver = Receiver(address, control())
    receiver.start()
    try:
        client = make_client()
        assert client.submit(step())
        until(lambda: client.counts().ok == 1)
    finally:
        receiver.stop()
    assert _lines(caplog) == ["transport=grpc why=no ring is offered"]


def test_a_ring_that_comes_too_late_is_given_back(
    address: str, make_client: MakeClient, caplog: pytest.LogCaptureFixture, mapped_here: Callable[[], int]
) -> None:
    """The socket accepts and says nothing until the tap has begun without it."""
    caplog.set_level(logging.INFO)
    begun = threading.Event()
    handed: list[None] = []
    receiver = Receiver(address, control(), rings=True)
    host = receiver.host
    assert host is not None
    hand_out = host._hand_out

    def late(connection: socket.socket) -> None:
        assert begun.wait(DEADLINE_S)
        handed.append(hand_out(connection))

    host._hand_out = late  # type: ignore[method-assign]
    receiver.start()
    try:
        client = TapClient(address, IDENTITY, engine_id="engine", limits=LinkLimits(agree_s=0.05))
        client.start()
        receiver.wait(lambda r: r.reports)  # sent, by gRPC
        begun.set()
        until(lambda: client.connected)
        assert client.submit(step())
        until(lambda: client.counts().ok == 1)
        assert handed
        assert receiver.by_ring == 0
        until(lambda: host.rings[0].left)
        assert _lines(caplog) == ["transport=grpc why=the ring was not agreed on in time"]
        until(lambda: mapped_here() == 2)
        client.stop(10.0)
    finally:
        receiver.stop()


def _hand_over(path: str, descriptors: Callable[[], list[int]], said: bytes = b"\x01") -> threading.Thread:
    """A socket that gives these descriptors to the first who comes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(16)
                given = descriptors()
                socket.send_fds(connection, [said], given)
                for one in given:
                    os.close(one)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def _memory(size: int) -> int:
    made = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(made, size)
    return made


def _ring(shape: Shape) -> list[int]:
    ring = Ring.create(shape)
    copies = [os.dup(one) for one in ring.descriptors.as_list()]
    ring.close()
    return copies


@pytest.mark.parametrize(
    ("descriptors", "why"),
    [
        (lambda: [_memory(8192), os.eventfd(0), os.eventfd(0)], "not a sealed ring"),
        (lambda: [os.eventfd(0), os.eventfd(0), os.eventfd(0)], "cannot map"),
        (lambda: [_memory(8192)], "refused"),
        (lambda: _ring(Shape(slots=2, slot_bytes=1 << 20)), "slots are smaller"),
    ],
    ids=["memory that can shrink", "no memory", "too few", "small slots"],
)
def test_what_is_no_ring_is_refused_and_no_descriptor_is_kept(
    address: str, descriptors: Callable[[], list[int]], why: str, mapped_here: Callable[[], int]
) -> None:
    path = ring_path(address)
    assert path is not None
    before = _descriptors()
    thread = _hand_over(path, descriptors)
    with pytest.raises(RingRefusedError, match=why):
        join_ring(address, b"t" * 16)
    thread.join(DEADLINE_S)
    assert _descriptors() <= before  # gRPC may still be closing some of an earlier test
    assert mapped_here() == 0


def test_states_that_cannot_be_written_keep_no_ring_mapped_although_the_log_keeps_the_error(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture, mapped_here: Callable[[], int]
) -> None:
    client = make_client()
    assert client.submit(captured((segment("broken", range(2)),), BrokenStates(states(2).rows)))
    assert client.submit(step("sound"))
    until(lambda: client.counts().ok == 1)
    assert client.counts() == TapLedgerCounts(sent=1, ok=1, dropped=1)
    client.stop(10.0)
    receiver.stop()
    assert any(record.exc_info for record in caplog.records)
    until(lambda: mapped_here() == 0)


def test_where_nobody_listens_there_is_no_ring(address: str) -> None:
    with pytest.raises(RingRefusedError, match="no answer"):
        join_ring(address, b"t" * 16)
    with pytest.raises(RingRefusedError, match="not a Unix socket"):
        join_ring("127.0.0.1:1", b"t" * 16)


_FOREIGN = """
import os, socket, sys
if os.getuid() == 0:
    os.setuid(65534)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
print("got", connection.recv(16), flush=True)
"""


@pytest.mark.process
def test_a_socket_of_another_user_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root the other user is a real one; anybody else takes himself for another, because he cannot become one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        address = f"unix:{folder}/s"
        command = [sys.executable, "-c", _FOREIGN, str(ring_path(address))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            if os.getuid() != 0:
                monkeypatch.setattr("os.getuid", lambda: 65533)
            with pytest.raises(RingRefusedError, match="another user"):
                join_ring(address, b"t" * 16)
            assert listener.stdout.readline() == "got b''\n"


def test_connections_come_and_go_and_leave_no_descriptor_and_no_thread(
    receiver: Receiver, host: RingHost, mapped_here: Callable[[], int]
) -> None:
    def visit() -> None:
        client = TapClient(receiver.address, IDENTITY, engine_id="engine")
        client.start()
        until(lambda: client.connected)
        assert client.submit(step())
        client.stop(10.0)
        assert client.counts() == TapLedgerCounts(sent=1, ok=1)

    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name.startswith("stethoscope-tap")]

    for visits in range(1, 8):
        visit()
        until(lambda: all(ring.left for ring in host.rings))
        assert len(host.rings) == visits
    until(lambda: not threads())
    assert mapped_here() == 2 * len(host.rings)
