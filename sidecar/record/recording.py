"""What comes from the engines, put together request by request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.errors import OtherModelError
from sidecar.record.rows import Gap, NeverWholeError, Recorded, Rows
from sidecar.recorded import Origin, RecordedError, differences
from sidecar.types import EngineId, ModelIdentity, RequestId, StepBatch, TapPoint, TrafficReport, UnseenReason

Outcome = Recorded | Gap | NeverWholeError
Unseen = Mapping[int, Mapping[UnseenReason, int]]  # by segment


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that is to be recorded under this name. tokens: of its prompt, all that is kept; 0: whatever it has."""

    name: str
    tokens: int = 0


class Requests(Protocol):
    """Which requests are wanted, and who hears of them. Both are called while the engine's stream waits: they must be quick."""

    def choose(self, request: RequestId) -> Wanted | None:
        """What a request of that id on the wire is wanted as; None if it is not, or has been settled."""
        ...

    def settled(self, wanted: Wanted, outcome: Outcome) -> None:
        """What became of it, once."""
        ...


class Recording:
    """Thread-safe. held_bytes: of all requests that are under way; beyond it the oldest is given up.

    claim: called with the identity of every engine that comes; raises RecordedError if its states do not belong here.
    """

    def __init__(
        self, points: Sequence[TapPoint], requests: Requests, claim: Callable[[Origin], None], held_bytes: int
    ) -> None:
        self.points = tuple(points)
        self.refused = ""  # why the first engine that came was not taken
        self._requests, self._claim = requests, claim
        self._held_bytes = held_bytes
        self._changed = threading.Condition()  # guards everything below
        self._open: OrderedDict[tuple[EngineId, RequestId], tuple[Wanted, Rows]] = OrderedDict()
        self._given_up: set[tuple[EngineId, RequestId]] = set()  # until their end comes
        self._held = 0
        self._model: ModelIdentity | None = None
        self._engines: set[EngineId] = set()
        self._streams: dict[EngineId, int] = {}
        self._dropped: dict[EngineId, tuple[int, int]] = {}  # by tap: tokens at its first report, and at its last

    # engines

    def register(self, engine: EngineId, model: ModelIdentity) -> None:
        """An engine introduces itself. Raises OtherModelError if its states do not belong with those that are there."""
        with self._changed:
            try:
                self._take(model)
            except RecordedError as error:
                if self._model is None:
                    self.refused = str(error)
                    self._changed.notify_all()
                raise OtherModelError from None
            self._engines.add(engine)

    def _take(self, model: ModelIdentity) -> None:
        if self._model is not None and self._model != model:
            raise RecordedError(differences(self._model, model))
        self._claim(Origin(model, self.points))
        self._model = model

    def opened(self, engine: EngineId) -> bool:
        """Its stream is open: from here on it captures what it is asked for. False if it has never registered."""
        with self._changed:
            if engine not in self._engines:
                return False
            self._streams[engine] = self._streams.get(engine, 0) + 1
            self._changed.notify_all()
            return True

    def closed(self, engine: EngineId) -> None:
        """Its stream is over. What was under way there is given up."""
        with self._changed:
            self._streams[engine] -= 1
            if not self._streams[engine]:
                for key in [key for key in self._open if key[0] == engine]:
                    self._give_up(key, Gap("the engine went away before its end"))
                self._given_up = {key for key in self._given_up if key[0] != engine}

    def wait_for_engine(self, timeout_s: float) -> bool:
        """Until an engine's stream is open, or one was refused; False if neither came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self.refused) or any(self._streams.values()), timeout_s)

    def report(self, report: TrafficReport) -> None:
        """What a tap counts, of which only its drops matter here."""
        dropped = dict(report.unseen).get(UnseenReason.TAP_DROPPED, 0)
        with self._changed:
            first, _ = self._dropped.get(report.engine_id, (dropped, 0))
            self._dropped[report.engine_id] = (min(first, dropped), dropped)  # one that starts anew counts anew

    @property
    def dropped(self) -> int:
        """Tokens that taps say they dropped since they came."""
        with self._changed:
            return sum(last - first for first, last in self._dropped.values())

    # their rows

    def batch(self, batch: StepBatch, unseen: Unseen) -> None:
        """Keep the rows of those requests that are wanted."""
        with self._changed:
            for segment, request in enumerate(batch.segments.request_ids):
                wanted, key = self._requests.choose(request), (batch.engine_id, request)
                if wanted is not None and key not in self._given_up:
                    self._add(key, wanted, batch, segment, unseen.get(segment, {}))
            self._finish(batch.engine_id, batch.finished)
            while self._held > self._held_bytes and len(self._open) > 1:
                limit = f"more than {self._held_bytes >> 20} MiB of requests are under way (--held-mib)"
                self._give_up(next(iter(self._open)), Gap(limit))

    def finished(self, engine: EngineId, requests: Iterable[RequestId]) -> None:
        """These requests are over; what is theirs came before."""
        with self._changed:
            self._finish(engine, requests)

    def _add(
        self,
        key: tuple[EngineId, RequestId],
        wanted: Wanted,
        batch: StepBatch,
        segment: int,
        unseen: Mapping[UnseenReason, int],
    ) -> None:
        _, rows = self._open.setdefault(key, (wanted, Rows(self.points)))
        before = rows.held_bytes
        rows.add(batch, segment, unseen)
        self._held += rows.held_bytes - before
        if wanted.tokens and rows.covers(wanted.tokens):
            self._settle(key)

    def _finish(self, engine: EngineId, requests: Iterable[RequestId]) -> None:
        for request in requests:
            if (engine, request) in self._given_up:
                self._given_up.discard((engine, request))
            elif (engine, request) in self._open:
                self._settle((engine, request))
            elif (wanted := self._requests.choose(request)) is not None:
                self._requests.settled(wanted, Gap("its end came, and none of its rows"))

    def _settle(self, key: tuple[EngineId, RequestId]) -> None:
        wanted, rows = self._open.pop(key)
        self._held -= rows.held_bytes
        self._requests.settled(wanted, _outcome(wanted, rows))

    def _give_up(self, key: tuple[EngineId, RequestId], gap: Gap) -> None:
        wanted, rows = self._open.pop(key)
        self._held -= rows.held_bytes
        self._given_up.add(key)
        self._requests.settled(wanted, gap)


def _outcome(wanted: Wanted, rows: Rows) -> Outcome:
    if wanted.tokens and rows.prompt_tokens not in (0, wanted.tokens):
        return Gap(f"the engine read a prompt of {rows.prompt_tokens} tokens, not of {wanted.tokens}")
    try:
        return rows.result(wanted.tokens)
    except NeverWholeError as never:
        return never
