"""Clients that send as fast as they are answered, and remember every id that they sent and every answer that they got."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from tests.builders import wire_batch
from tests.service.client import Client, Served, Stream

Outcome = tuple[int, str]


@dataclass
class Books:
    """What all clients together sent, and how each batch was answered."""

    sent: set[str] = field(default_factory=set)
    answers: dict[str, list[Outcome]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # codes of calls that were not answered
    changed: threading.Condition = field(default_factory=threading.Condition)

    def send(self, batch_id: str) -> None:
        with self.changed:
            self.sent.add(batch_id)

    def answer(self, batch_id: str, outcome: Outcome) -> None:
        with self.changed:
            self.answers.setdefault(batch_id, []).append(outcome)
            self.changed.notify_all()

    def refuse(self, code: str) -> None:
        with self.changed:
            self.refused[code] += 1

    def wait_for_answers(self, count: int, timeout_s: float) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.answers) >= count, timeout_s), (count, self.answers)


def observing(client: Client, engine: str, books: Books) -> None:
    """One batch at a time by Observe, until the sidecar takes no more."""
    while True:
        batch = wire_batch(engine_id=engine)
        books.send(batch.batch_id)
        answer = client.observe(batch)
        if answer.result is None:
            books.refuse(answer.code.name)
            return
        books.answer(batch.batch_id, (answer.result.outcome, answer.result.reason))


def streaming(window: int) -> Callable[[Client, str, Books], None]:
    """``window`` batches under way at once on a stream, until the sidecar ends it."""

    def run(client: Client, engine: str, books: Books) -> None:
        stream = client.stream()
        for _ in range(window):
            _send(stream, engine, books)
        while True:
            try:
                result = stream.next_result()
            except (grpc.RpcError, StopIteration) as end:
                books.refuse(type(end).__name__ if isinstance(end, StopIteration) else end.code().name)
                stream.cancel()
                return
            books.answer(result.batch_id, (result.outcome, result.reason))
            _send(stream, engine, books)

    return run


def _send(stream: Stream, engine: str, books: Books) -> None:
    batch = wire_batch(engine_id=engine)
    books.send(batch.batch_id)
    stream.send_batch(batch)


class Load:
    """Several clients, each an engine of its own on a connection of its own."""

    def __init__(self, served: Served, *kinds: Callable[[Client, str, Books], None]) -> None:
        self.books = Books()
        self._clients = [Client(served) for _ in kinds]
        self._threads = []
        for number, (client, kind) in enumerate(zip(self._clients, kinds, strict=True)):
            client.register(engine=f"engine-{number}")
            self._threads.append(
                threading.Thread(target=kind, args=(client, f"engine-{number}", self.books), daemon=True)
            )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive()
        for client in self._clients:
            client.channel.close()
