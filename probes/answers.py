"""A model's own answers: of every row that an engine serves, most are of tokens that the model wrote itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probes.activations.feeding import chat_ids
from probes.activations.model import LabModel

if TYPE_CHECKING:
    from rich.progress import Progress

_AT_ONCE = 16


def answered(lab: LabModel, prompts: Sequence[str], tokens: int, bars: Progress) -> list[list[int]]:
    """Token ids of each chat with the model's own greedy answer of at most ``tokens`` tokens, end-of-turn included."""
    groups = [prompts[at : at + _AT_ONCE] for at in range(0, len(prompts), _AT_ONCE)]
    chats: list[list[int]] = []
    for group in bars.track(groups, description="generating answers"):
        chats.extend(_together(lab.model, [chat_ids(lab, prompt) for prompt in group], tokens))
    return chats


def _together(model: Any, asked: list[list[int]], tokens: int) -> list[list[int]]:
    import torch

    ends, longest = _ends(model), max(map(len, asked))
    pad = ends[0] if ends else 0  # masked: which token it is makes no difference
    ids = torch.tensor([[pad] * (longest - len(text)) + text for text in asked])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in asked])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=pad)
    return [text + _cut(answer, ends) for text, answer in zip(asked, out[:, longest:].tolist(), strict=True)]


def _ends(model: Any) -> list[int]:
    """The tokens that end an answer: a model may have several, or none."""
    told = model.generation_config.eos_token_id
    return [told] if isinstance(told, int) else list(told or ())


def _cut(answer: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end, itself included: what follows it is padding."""
    return answer[: next((at for at, token in enumerate(answer, start=1) if token in ends), len(answer))]
