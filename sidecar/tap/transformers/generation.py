"""One call of ``model.generate``: whose rows they are, how long the prompt is, and which rows have ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode

from sidecar.tap.faults import Faults
from sidecar.tap.step import Request

_ROW_BY_ROW = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_BEAMS = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)


@dataclass(slots=True)
class Batch:
    """The rows that consecutive forward passes have in common."""

    requests: list[Request]
    columns: int = 0  # fed so far, cached ones included


@dataclass(slots=True)
class Generation:
    """State of one call. Owned by the thread that generates."""

    assistant: object = None
    prompt_columns: int = 0
    batch: Batch | None = None
    done: list[bool] = field(default_factory=list)  # per row; empty while none has ended
    news: bool = False  # ``done`` has changed
    refusal: str = ""

    def prepare(self, generation_config: Any) -> None:
        """Called by ``generate`` itself with the settings in force for this call."""
        mode = generation_config.get_generation_mode(self.assistant)
        if mode not in _ROW_BY_ROW + _BEAMS:
            self.refusal = f"generation by {mode.value}: rows may be computed and thrown away"

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
    return watched


def prompt_columns(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Columns of the prompt given to ``generate``; 0 if it is not a plain tensor."""
    for prompt in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]):
        if isinstance(prompt, torch.Tensor) and prompt.ndim >= 2:
            return int(prompt.shape[1])
    return 0
