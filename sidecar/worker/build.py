"""The worker's composition root, the same for a process and for a thread."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.ingest.bugs import bug_teller
from sidecar.ingest.decode import Decoder
from sidecar.ledger import Ledger, map_ledger
from sidecar.log import Level, Log
from sidecar.pipeline import Pipeline
from sidecar.snapshot import EndedRequest
from sidecar.worker.board import Board
from sidecar.worker.events import Teller
from sidecar.worker.loop import Worker
from sidecar.worker.session import Peer
from sidecar.worker.shards import Shards

MakePipeline = Callable[[Config, Clock, Callable[[EndedRequest], None], Ledger], Pipeline]
MakeDecoder = Callable[[Config, Clock], Decoder]


@dataclass(frozen=True, slots=True)
class Ends:
    """What the control process hands to its worker."""

    orders: socket.socket
    events: socket.socket
    board: int
    ledger: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker is made of; a test puts its own in."""

    pipeline: MakePipeline = Pipeline
    decoder: MakeDecoder = lambda config, clock: Decoder(config.limits, clock)


def build(config: Config, clock: Clock, log: Log, ends: Ends, parts: Parts, *, process: bool) -> Worker:
    """A worker that is ready to run. What a process that was killed left open is booked first."""
    ledger = map_ledger(ends.ledger)
    batches, rows = ledger.book_killed()
    if batches or rows:
        log.event(Level.WARNING, "killed_before", step_batches=batches, rows=rows)
    teller = Teller(ends.events)
    ended = teller.ended if config.traces.enabled else lambda _: None
    pipeline = parts.pipeline(config, clock, ended, ledger)
    if process:
        pipeline.kernels.start()  # torch is there by the time the first engine registers, and the worker answers before that
    if config.worker.shards:
        shards = Shards(config.worker.shards, clock, log)
        shards.start()
        pipeline.others = shards
    peer = Peer(pipeline, parts.decoder(config, clock), clock, log, bug_teller(log))
    return Worker(peer, Board(ends.board), ends.orders, teller, process=process)
