"""What the worker tells by itself, through a real socket."""

from __future__ import annotations

import socket

from sidecar.snapshot import EndedRequest
from sidecar.types import Medium
from sidecar.worker.events import Teller, hear
from tests.export.examples import UNSAMPLED, ended, score


def test_ended_requests_and_a_change_of_sampling_arrive_as_they_were() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = [
        ended(
            "one",
            route="chat",
            adapter="sql",
            media=((Medium.IMAGE, 4),),
            canary=True,
            scores=(score(), score("spam", 0.9)),
        ),
        ended("two", traceparent=UNSAMPLED, ended_by="idle"),
        ended("three", traceparent=None, scores=()),
    ]
    with ours:
        teller = Teller(ours)
        for one in told:
            teller.ended(one)
        teller.sampling(0.25)
    heard: list[EndedRequest] = []
    factors: list[float] = []
    hear(theirs, heard.append, factors.append)
    assert (heard, factors, teller.lost) == (told, [0.25], 0)
