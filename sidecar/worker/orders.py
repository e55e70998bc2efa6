"""What the control process tells the worker, one packet each way: JSON, descriptors beside it, answered in order."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

_PACKET = 1 << 20
_MOST_DESCRIPTORS = 8


class WorkerLostError(Exception):
    """The worker is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel that keeps packets apart."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET)
    return ends


class OrderFailedError(Exception):
    """The worker ran into a bug of ours on that order; its log says which."""


class Orders:
    """The control process's end. Thread-safe; one order is under way at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._number = 0

    def give(
        self, what: str, descriptors: Sequence[int] = (), *, timeout_s: float | None = None, **fields: Any
    ) -> dict[str, Any] | None:
        """The worker's answer; None if it took longer than timeout_s. Raises WorkerLostError or OrderFailedError."""
        with self._lock:
            self._number += 1
            packet = json.dumps({"n": self._number, "what": what, **fields}).encode()
            try:
                socket.send_fds(self._end, [packet], list(descriptors))
                self._end.settimeout(timeout_s)
                return self._answer()
            except TimeoutError:
                return None
            except OSError as error:
                raise WorkerLostError from error

    def _answer(self) -> dict[str, Any]:
        """The answer to the newest order; one that was given up comes before it."""
        while True:
            packet = self._end.recv(_PACKET)
            if not packet:
                raise WorkerLostError
            answer: dict[str, Any] = json.loads(packet)
            if answer["n"] == self._number:
                if "failed" in answer:
                    raise OrderFailedError(answer["failed"])
                return answer

    def close(self) -> None:
        self._end.close()


def take(end: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The worker's end: an order and its descriptors, which are now ours; None if nobody will give another."""
    packet, descriptors, _, _ = socket.recv_fds(end, _PACKET, _MOST_DESCRIPTORS)
    if not packet:
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return json.loads(packet), descriptors


def answer(end: socket.socket, order: dict[str, Any], **fields: Any) -> None:
    end.send(json.dumps({"n": order["n"], **fields}).encode())
