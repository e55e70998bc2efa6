"""Steps wait a little for others to go with them: where somebody waits for an answer, and at the end, they do not."""

from __future__ import annotations

import math

import pytest

from sidecar.tap.limits import LinkLimits
from sidecar.tap.pace import Pace
from sidecar.types import TapLedgerCounts
from tests.tap.clients import MakeClient, connected
from tests.tap.receiver import Receiver
from tests.tap.samples import BrokenStates, captured, segment, states, step
from tests.waiting import until

LONG = {"linger_s": 900.0, "queue_s": 3600.0}  # nothing goes because of its age


def test_what_waits_when_the_tap_stops_goes_as_one_batch_with_its_end_behind_it(
    receiver: Receiver, make_client: MakeClient
) -> None:
    client = connected(make_client(**LONG))
    for number in range(1, 11):
        assert client.submit(step("r", number))
    client.finish(["r"])
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes)
    assert client.counts() == TapLedgerCounts(sent=1, ok=1)
    assert sorted(receiver.rows(1)["r"]) == list(range(1, 11))
    kinds = [request.WhichOneof("body") for request in receiver.requests]
    assert kinds == ["traffic", "step_batch", "finished", "traffic", "goodbye"]


def test_a_step_waits_for_as_long_as_it_may_and_then_goes(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(linger_s=0.05))
    for number in range(3):
        assert client.submit(step("r", number))
    until(lambda: len(receiver.rows(1).get("r", ())) == 3)
    until(lambda: client.counts().ok == client.counts().sent)
    assert client.submit(step("r", 3))
    until(lambda: len(receiver.rows(1)["r"]) == 4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_for_whoever_waits_for_verdicts_every_step_goes_at_once(
    receiver: Receiver, make_client: MakeClient, when: str
) -> None:
    client = make_client(**LONG)
    if when == "before":
        client.on_verdict(lambda *_: None)
    connected(client)
    assert client.submit(step("r", 0))
    assert client.submit(step("r", 1))
    if when == "after":
        client.on_verdict(lambda *_: None)
    until(lambda: client.counts() == TapLedgerCounts(sent=2, ok=2))


def test_a_queue_that_fills_is_not_waited_for(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(queue_batches=40, **LONG))
    assert all(client.submit(step("r", number)) for number in range(1, 11))  # a quarter
    until(lambda: client.counts().ok > 0)
    assert sorted(receiver.rows(1)["r"]) == list(range(1, 11))


def test_states_that_cannot_be_encoded_cost_their_own_step_only(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(**LONG))
    assert client.submit(step("r", 1))
    assert client.submit(captured((segment("r", range(2, 3), 1),), BrokenStates(states(1).rows)))
    assert client.submit(step("r", 3))
    client.stop(10.0)
    assert client.counts() == TapLedgerCounts(sent=2, ok=2, dropped=1)
    assert sorted(receiver.rows(1)["r"]) == [1, 3]
    assert client.errors == 1


def test_a_closed_link_settles_what_lingers_as_dropped(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(**LONG))
    for number in range(3):
        assert client.submit(step("r", number, rows=2))
    receiver.stop()
    until(lambda: client.counts().dropped == 3)
    assert sum(tokens for _, tokens in client.traffic.counts().unseen) == 6


@pytest.mark.parametrize("linger_s", [-0.1, math.nan, math.inf])
def test_a_linger_that_is_no_number_of_seconds_is_refused(linger_s: float) -> None:
    with pytest.raises(ValueError, match="linger_s"):
        LinkLimits(linger_s=linger_s)


def test_a_sender_that_wakes_in_time_is_not_woken() -> None:
    pace = Pace(0.02)
    assert not pace.must_wake(1.0)  # it is awake
    assert pace.sleep(1.0, 1.5, math.inf) == 1.5  # idle, until the next report
    assert pace.must_wake(1.1)
    assert pace.sleep(1.1, 1.5, 1.1) == pytest.approx(1.12)  # now it has something to wake for
    assert not pace.must_wake(1.11)
    pace.sent(1.12)
    assert pace.sleep(1.12, 1.5, math.inf) == pytest.approx(1.14)  # more will come
    assert not pace.must_wake(1.13)
    assert pace.due_s(1.13) == pytest.approx(1.14)
    assert pace.sleep(1.15, 1.5, math.inf) == 1.5  # nothing came
    assert pace.must_wake(1.2)


def test_without_a_linger_the_sender_is_woken_by_every_step() -> None:
    pace = Pace(0.02)
    pace.hurry()
    pace.sent(1.0)
    pace.sleep(1.0, 1.5, math.inf)
    assert pace.must_wake(1.001)
    assert pace.due_s(1.001) <= 1.001
    assert not pace.lingers
