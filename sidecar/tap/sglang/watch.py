"""One model's steps, seen from its worker: whose rows they are, from the scheduler's batch; and their states, from the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from sidecar.tap.client import TapClient
from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.recorder import AnySpan, Recorder
from sidecar.tap.sglang.requests import Requests
from sidecar.tap.tensors.keeper import Keeper
from sidecar.types import TapPoint, UnseenReason

log = logging.getLogger("stethoscope.tap")

_PROMPTS = ("EXTEND", "MIXED", "SPLIT_PREFILL", "DLLM_EXTEND")  # kinds of step whose batch says how many tokens are new


class Piece(NamedTuple):
    """The next ``length`` rows of a step are those of ``req``, from position ``first`` on."""

    req: Any
    first: int
    length: int


def pieces(batch: Any) -> list[Piece]:
    """Whose rows the step of a ``ScheduleBatch`` computes, in order, by the host's own copies: no device is waited for.

    A prefix that the radix cache had is not among them: it is passed over. Raises Unsupported.
    """
    if batch is None:
        raise Unsupported("steps without the scheduler's word")
    kind = batch.forward_mode.name
    if kind == "IDLE":
        return []
    if kind in ("EXTEND", "MIXED"):  # a mixed one has requests that decode among those that begin: each with one row
        firsts, lengths = batch.prefix_lens, batch.extend_lens
    elif kind == "DECODE" and batch.seq_lens_cpu is not None:
        firsts, lengths = [length - 1 for length in batch.seq_lens_cpu.tolist()], [1] * len(batch.reqs)
    else:
        raise Unsupported(f"steps of the kind {kind}")
    if not len(firsts) == len(lengths) == len(batch.reqs):
        raise Unsupported("steps with rows of no request")
    return [Piece(*one) for one in zip(batch.reqs, firsts, lengths, strict=True)]


def computed(batch: Any) -> int:
    """How many tokens a step computes whose rows cannot be told, by what its batch says; 0 if it says nothing.

    Of a prompt all that are new. Else one a request: a batch that goes on keeps the lengths of its prompts, which are past.
    """
    if getattr(getattr(batch, "forward_mode", None), "name", "") in _PROMPTS:
        return sum(batch.extend_lens)
    return len(getattr(batch, "reqs", None) or ())


class Watch:
    """Follows requests and keeps states. Owned by the scheduler's thread; nothing that goes wrong here reaches the engine.

    handed: the tap points whose states the model hands out, side by side, each ``width`` wide. tapped: those to be kept.
    """

    def __init__(
        self, client: TapClient, handed: tuple[TapPoint, ...], tapped: frozenset[TapPoint], width: int
    ) -> None:
        self.client = client
        self.faults = Faults()
        self.recorder = Recorder(client)
        self._handed, self._tapped, self._width = handed, tapped, width
        self._keeper = Keeper(self.recorder, self.faults)
        self._requests = Requests(self.recorder)

    def before(self, batch: Any) -> list[Piece]:
        """A step is about to be computed: what is read now, the engine may change while it runs."""
        try:
            return pieces(batch)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("before_forward", error)
            self._count(batch)
            return []

    def _count(self, batch: Any) -> None:
        """What was computed and is not captured."""
        try:
            self.recorder.count(computed(batch), UnseenReason.UNSUPPORTED)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("count", error)

    def after(self, rows: list[Piece], result: Any) -> None:
        """It was computed; ``result`` is a ``GenerationBatchResult``."""
        if not rows:
            return
        try:
            self._record(rows, result.logits_output.hidden_states)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("after_forward", error)
            self.recorder.give_up(sum(piece.length for piece in rows))

    def processed(self, batch: Any) -> None:
        """The tokens of a step were given to its requests."""
        try:
            self._requests.end(batch.reqs)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("schedule", error)

    def _record(self, rows: list[Piece], states: torch.Tensor | None) -> None:
        """No states at all show as a tap point that is blind; states of other rows than were scheduled are not captured."""
        asked = self.client.settings.tap_points
        self.recorder.begin(self._spans(rows), capture=bool(asked))
        if states is not None:
            expected = (sum(piece.length for piece in rows), len(self._handed) * self._width)
            if tuple(states.shape) != expected:
                raise Unsupported("the model hands out states of another shape than its rows and layers have")
            for place, point in enumerate(self._handed):
                if point in self._tapped and point in asked:
                    self._keeper.keep(point, states[:, place * self._width : (place + 1) * self._width])
        self.recorder.end()

    def _spans(self, rows: list[Piece]) -> Iterator[AnySpan]:
        row = 0
        for req, first, length in rows:
            yield self._requests.of(req), row, first, length
            row += length
