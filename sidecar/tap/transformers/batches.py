"""The rows that consecutive forward passes have in common, and whose they are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.step import Request, RequestInfo
from sidecar.tap.transformers.context import ROWS
from sidecar.tap.transformers.layout import RowSpan


@dataclass(slots=True)
class Batch:
    """One request a row. ``encoded``: an encoder has run for them, and its decoder has not yet."""

    requests: list[Request]
    columns: int = 0  # fed so far, cached ones included
    encoded: bool = False
    sources: list[Request] = field(
        default_factory=list
    )  # what the encoder ran for, where the decoder's rows are others

    def open_requests(self) -> Iterator[Request]:
        """Those that have not ended."""
        return (one for one in (*self.sources, *self.requests) if not one.ended)

    def pass_on(self, rows: int, recorder: Recorder) -> None:
        """From the encoder to the decoder: to the same requests, or, if it has other rows, to hypotheses of each."""
        self.encoded, self.columns = False, 0
        if len(self.requests) == rows:
            for request in self.requests:
                request.pass_on()
            return
        self.sources = self.requests
        chosen = {one.info.request_id: one.chosen for one in self.sources}
        infos = _shared([one.info for one in self.sources], rows)
        self.requests = [
            recorder.request(info, 0, chosen=chosen.get(info.request_id.rpartition("/")[0])) for info in infos
        ]

    def spans(self, table: list[RowSpan], columns: int) -> list[Span]:
        """Whose rows the real columns of a [rows, columns] pass are."""
        return [
            Span(request, row * columns + span.column, span.first, span.length)
            for row, (request, span) in enumerate(zip(self.requests, table, strict=True))
            if span.length and not request.ended
        ]

    def continues(self, rows: int, past: int, *, generating: bool) -> bool:
        """Within ``generate`` every pass belongs to the same rows; outside, only one on top of exactly what was fed so far."""
        return len(self.requests) == rows and not self.encoded and (generating or 0 < past == self.columns)

    def measure_prompts(self, table: list[RowSpan], rest: int = 0) -> None:
        """What this pass and, in a prefill by chunks, the ``rest`` still to come say of each prompt's length."""
        for request, span in zip(self.requests, table, strict=True):
            if span.length and request.prompt_tokens <= request.next_position:
                request.prompt_tokens = span.first + span.length + rest


def open_batch(recorder: Recorder, rows: int, run: int = 0) -> Batch:
    """New requests, by the caller's names or under ids of their own. run: how often the encoder has run before in this call."""
    infos = _shared(list(ROWS.get()), rows)
    if run:
        infos = [replace(info, request_id=f"{info.request_id}#{run}") for info in infos]
    return Batch([recorder.request(info, 0) for info in infos])


def _shared(infos: list[RequestInfo], rows: int) -> list[RequestInfo]:
    """The names, each for as many rows as ``generate`` made of it; fresh ones if they do not fit."""
    if not infos or rows % len(infos):
        call = uuid.uuid4().hex
        return [RequestInfo(f"gen-{call}-{row}") for row in range(rows)]
    copies = rows // len(infos)
    if copies == 1:
        return infos
    return [replace(info, request_id=f"{info.request_id}/{k}") for info in infos for k in range(copies)]
