"""Asked to end under load: what was taken is answered and booked, what was not taken is nobody's loss unseen."""

from __future__ import annotations

import signal
import time

import pytest

from protos.stethoscope.v1 import ingest_pb2
from tests.faults.load import Load, observing, streaming
from tests.faults.process import Process
from tests.service.client import Client

pytestmark = pytest.mark.process
SCORED = (ingest_pb2.OUTCOME_SCORED, "")
CLIENTS = (observing, observing, observing, streaming(1), streaming(1), streaming(8))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_answers_what_it_took_and_books_what_it_answered(home, artifacts, number):
    with Process(home, artifacts, "--set", "listen.drain_s=60") as process:
        load = Load(process, *CLIENTS)
        load.start()
        load.books.wait_for_answers(300, 30.0)
        process.signal(number)
        assert process.gone(20.0)  # busy streams end with their next message, not with the drain time
        assert process.wait() == 0
        load.join(20.0)
        stopped = process.event("stopped")
    books = load.books
    assert set(books.answers) <= books.sent
    assert all(outcomes == [SCORED] for outcomes in books.answers.values())
    assert stopped["received"] == stopped["scored"] == len(books.answers)
    assert (stopped["dropped"], stopped["rejected"], stopped["in_flight"], stopped["balanced"]) == (0, 0, 0, True)
    assert sum(books.refused.values()) == len(CLIENTS)
    with Process(home, artifacts) as again, Client(again) as client:
        client.register()
        client.good()


def test_an_idle_stream_delays_the_stop_no_longer_than_the_drain_time(home, artifacts):
    with Process(home, artifacts, "--set", "listen.drain_s=1") as process, Client(process) as client:
        client.register()
        idle = client.stream(timeout_s=600.0)
        idle.next()
        client.good()
        asked_s = time.monotonic()
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGTERM)  # an impatient supervisor
        assert process.wait() == 0
        assert time.monotonic() - asked_s < 1.0 + 5.0
        assert process.event("stopped")["received"] == 1
        idle.cancel()


def test_what_is_refused_and_dropped_before_the_stop_is_in_its_last_line(home, artifacts):
    with Process(home, artifacts) as process, Client(process) as client:
        client.register()
        client.good(batch_id="twice")
        client.observe(b"\xff")
        client.call("IngestService/Observe", ingest_pb2.ObserveRequest(step_batch=_twice()).SerializeToString())
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        stopped = process.event("stopped")
    counts = {name: stopped[name] for name in ("received", "scored", "dropped", "rejected", "in_flight", "balanced")}
    assert counts == {"received": 3, "scored": 1, "dropped": 1, "rejected": 1, "in_flight": 0, "balanced": True}


def _twice() -> ingest_pb2.StepBatch:
    from tests.builders import wire_batch

    return wire_batch(batch_id="twice")
