"""What the control process tells the worker, one packet each way: JSON, descriptors beside it, answered in order."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from sidecar.errors import OrderFailedError, WorkerBusyError, WorkerLostError

_PACKET = 1 << 20
_MOST_DESCRIPTORS = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel that keeps packets apart."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET)
    return ends


class Orders:
    """The control process's end. Thread-safe; one order is under way at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._number = 0

    def give(self, what: str, descriptors: Sequence[int] = (), *, timeout_s: float, **fields: Any) -> dict[str, Any]:
        """The worker's answer. Raises WorkerLostError, WorkerBusyError or OrderFailedError.

        An order that was given up is still carried out if the worker comes back; its answer is not waited for.
        """
        if not self._lock.acquire(timeout=timeout_s):
            raise WorkerBusyError
        try:
            self._number += 1
            packet = json.dumps({"n": self._number, "what": what, **fields}).encode()
            self._end.settimeout(timeout_s)
            socket.send_fds(self._end, [packet], list(descriptors))
            return self._answer()
        except TimeoutError:
            raise WorkerBusyError from None
        except OSError as error:
            raise WorkerLostError from error
        finally:
            self._lock.release()

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
