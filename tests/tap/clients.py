"""Waiting for a client to be connected."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.tap.client import TapClient
from tests.waiting import until

MakeClient = Callable[..., TapClient]


def connected(client: TapClient) -> TapClient:
    until(lambda: client.connected)
    return client
