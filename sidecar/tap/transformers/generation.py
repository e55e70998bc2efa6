"""One call of ``model.generate``: whose rows they are, how long the prompt is, and which rows have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode

from sidecar.tap.faults import Faults
from sidecar.tap.step import Request
from sidecar.tap.transformers.stops import Stops

_ROW_BY_ROW = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_BEAMS = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)


@dataclass(slots=True)
class Generation:
    """State of one call. Owned by the thread that generates."""

    assistant: object = None
    prompt_columns: int = 0
    done: list[bool] = field(default_factory=list)  # per row; empty while none has ended
    news: bool = False  # ``done`` has changed
    refusal: str = ""
    stops: Stops | None = None
    row_by_row: bool | None = None  # rows are sequences, which end one by one; not known while the encoder runs
    names: list[str] = field(default_factory=list)  # wire ids, a row each
    blocked: deque[int] = field(default_factory=deque)  # rows to be ended; filled by the client's thread
    encoder_runs: Iterator[int] = field(default_factory=count)  # speech is cut into windows, each with a run of its own

    def prepare(self, generation_config: Any) -> None:
        """Called by ``generate`` itself with the settings in force for this call."""
        mode = generation_config.get_generation_mode(self.assistant)
        if mode not in _ROW_BY_ROW + _BEAMS:
            self.refusal = f"generation by {mode.value}: rows may be computed and thrown away"
        self.row_by_row = mode in _ROW_BY_ROW

    def restart(self) -> None:
        """The encoder runs: whatever rows there were have ended, and the next ones are new."""
        self.done, self.news, self.names = [], False, []
        self.blocked.clear()

    def heed(self, requests: list[Request]) -> None:
        """Rows can be ended by a verdict from now on. Hypotheses of a beam search are no rows and cannot."""
        self.names = [request.wire_id for request in requests]
        if self.stops is not None and self.row_by_row is not False:
            for row, request in enumerate(requests):
                if request.chosen:  # nobody judges the others
                    self.stops.heed(request.wire_id, partial(self.blocked.append, row))

    def forget(self, requests: Iterable[Request]) -> None:
        """They have ended."""
        if self.stops is not None:
            for request in requests:
                self.stops.forget(request.wire_id)

    def halt(self, done: torch.Tensor) -> torch.Tensor:
        """``done`` [rows], and the rows that are blocked. Reads the device only where there are any."""
        if not self.blocked or self.stops is None:
            return done
        rows = [self.blocked.popleft() for _ in range(len(self.blocked))]
        over = [a or b for a, b in zip(done.tolist(), self.done or [False] * done.shape[0], strict=True)]
        rows = [row for row in rows if not over[row]]
        for row in rows:
            self.stops.book(self.names[row])
        return done.index_fill(0, torch.tensor(rows, dtype=torch.long, device=done.device), value=True)

    def mark(self, done: torch.Tensor) -> None:
        """A stopping criterion held for these rows: ``generate`` goes on feeding padding to them while others run."""
        values: list[bool] = done.tolist()
        if any(values):
            self.done = [a or b for a, b in zip(self.done, values, strict=True)] if self.done else values
            self.news = True


class WatchedCriteria(StoppingCriteriaList):
    """The call's own stopping criteria, overheard: whatever ends a row (EOS, a stop string, a length) is known exactly."""

    generation: Generation
    faults: Faults

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done: torch.Tensor = super().__call__(input_ids, scores, **kwargs)
        try:
            done = self.generation.halt(done)
            if done.shape[0] > 1:  # a single row ends with its call
                self.generation.mark(done)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self.faults.note("stopping_criteria", error)
        return done


def overhear(
    criteria: StoppingCriteriaList, generation: Generation, faults: Faults, config: Any
) -> StoppingCriteriaList:
    """The same criteria. In beam search they speak of hypotheses, not of rows, and are left alone."""
    if config.get_generation_mode(generation.assistant) not in _ROW_BY_ROW:
        return criteria
    watched = WatchedCriteria(criteria)
    watched.generation = generation
    watched.faults = faults
    padding = config._pad_token_tensor  # noqa: SLF001 - where generate keeps it during the call
    if generation.stops is not None and padding is not None and not any(hasattr(c, "eos_token_id") for c in criteria):
        watched.append(_Padded())
    return watched


class _Padded(StoppingCriteria):
    """Ends nothing, and makes ``generate`` put padding into rows that have ended.

    It does so only if some criterion has an ``eos_token_id``; a blocked row would else be written on while the others run.
    """

    eos_token_id = None

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def prompt_columns(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Columns of the prompt given to ``generate``; 0 if it is not a plain tensor, or an encoder's."""
    if getattr(model.config, "is_encoder_decoder", False):
        return 0
    for prompt in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]):
        if isinstance(prompt, torch.Tensor) and prompt.ndim >= 2:
            return int(prompt.shape[1])
    return 0
