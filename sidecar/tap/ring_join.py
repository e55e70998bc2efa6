"""Getting hold of the ring that a sidecar offers: its descriptors come over a socket beside the sidecar's own."""

from __future__ import annotations

import os
import socket
import struct

from sidecar.address import ring_path
from sidecar.ring import Descriptors, Ring, RingBrokenError
from sidecar.tap.batch import ENVELOPE_BYTES

JOIN_S = 1.0  # for each step; both ends are on this machine
_GRANTED = b"\x01"
_DESCRIPTORS = 3
SMALLEST_SLOT = 2 * ENVELOPE_BYTES
_HOT_BYTES = 4 << 20  # mapped in advance: twice a step of 4 tap points x 64 rows x 4096 bf16


class RingRefusedError(Exception):
    """There is no ring to be had; the text says why, in our own words."""


def join_ring(address: str, ticket: bytes) -> Ring:
    """The ring that ``ticket`` stands for, mapped and warm. The caller owns it. Raises RingRefusedError."""
    path = ring_path(address)
    if path is None:
        raise RingRefusedError("not a Unix socket")
    try:
        descriptors = _redeem(path, ticket)
    except OSError as error:
        raise RingRefusedError(f"no answer at its socket: {error.strerror or 'timed out'}") from error
    try:
        ring = Ring.attach(descriptors)
    except RingBrokenError as error:
        for descriptor in descriptors.as_list():
            os.close(descriptor)
        raise RingRefusedError(str(error)) from error
    if ring.shape.slot_bytes < SMALLEST_SLOT:
        ring.close()
        raise RingRefusedError(f"its slots are smaller than {SMALLEST_SLOT} bytes")
    ring.prefault(_HOT_BYTES)
    return ring


def _redeem(path: str, ticket: bytes) -> Descriptors:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
        ours.settimeout(JOIN_S)
        ours.connect(path)
        if _owner(ours) not in (0, os.getuid()):
            raise RingRefusedError("its socket belongs to another user")
        ours.sendall(ticket)
        said, received, _, _ = socket.recv_fds(ours, 1, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if said == _GRANTED and len(received) == _DESCRIPTORS:
        return Descriptors(*received)
    for descriptor in received:
        os.close(descriptor)
    raise RingRefusedError("the sidecar refused the ticket")


def _owner(ours: socket.socket) -> int:
    """User id of the process that listens."""
    _, uid, _ = struct.unpack("3i", ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
