"""A client that ends delivers what waits, in its time, and says goodbye."""

from __future__ import annotations

import time

from sidecar.types import TapLedgerCounts
from tests.tap.clients import MakeClient, connected
from tests.tap.conftest import MakeReceiver
from tests.tap.receiver import Receiver, control
from tests.tap.samples import step
from tests.waiting import until


def _balanced(counts: TapLedgerCounts) -> bool:
    return counts.sent == counts.ok + counts.refused + counts.unknown


def test_stop_delivers_what_waits_and_says_goodbye_with_the_final_ledger(
    receiver: Receiver, make_client: MakeClient
) -> None:
    client = connected(make_client())
    for i in range(100):
        assert client.submit(step("r", i))
    client.finish(["r"])
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes)
    assert client.counts() == TapLedgerCounts(sent=100, ok=100)
    kinds = [request.WhichOneof("body") for request in receiver.requests]
    assert kinds[-2:] == ["traffic", "goodbye"]
    assert (receiver.reports[-1].tap.sent, receiver.reports[-1].tap.ok) == (100, 100)
    assert kinds.index("finished") > max(i for i, kind in enumerate(kinds) if kind == "step_batch")
    assert not client.submit(step())
    client.stop(10.0)


def test_stop_keeps_its_time_with_a_frozen_sidecar(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client())
    receiver.freeze()
    for i in range(20):
        client.submit(step("r", i))
    start_s = time.monotonic()
    client.stop(0.3)
    assert time.monotonic() - start_s < 5
    until(lambda: _balanced(client.counts()))
    assert client.counts().sent + client.counts().dropped == 20


def test_a_client_that_was_let_go_says_goodbye_by_itself(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client())
    assert client.submit(step())
    client.end_soon()
    receiver.wait(lambda r: r.goodbyes == 1)
    assert client.counts() == TapLedgerCounts(sent=1, ok=1)


def test_stopping_while_connecting_says_goodbye_too(make_receiver: MakeReceiver, make_client: MakeClient) -> None:
    """Once registered, an engine that leaves without a word is taken for lost."""
    receiver = make_receiver(control())
    client = make_client()
    receiver.wait(lambda r: r.registrations)
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes == 1)
