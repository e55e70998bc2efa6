"""Prompts through a tiny model, and what each request must have left behind."""

from __future__ import annotations

from typing import Any

import torch

from tests.tap.engine import PROMPTS, alone, left_padded, worst_difference
from tests.tap.models import EOS
from tests.tap.receiver import Receiver

NAMES = ["a", "b", "c"]


TOLERANCE = 1e-6  # 100 times what batching moves these random models (width 32, states of size 0.1)


def generate(model: Any, **settings: Any) -> Any:
    defaults = {"max_new_tokens": 6, "do_sample": False}
    return model.generate(**left_padded(), **(defaults | settings))


def sequences_of(output: torch.Tensor) -> dict[str, list[int]]:
    """What each request computed: prompt and generated tokens, without padding and without the last one, never fed back."""
    width = max(map(len, PROMPTS))
    found = {}
    for name, prompt, row in zip(NAMES, PROMPTS, output.tolist(), strict=True):
        made = row[width:]
        end = made.index(EOS) if EOS in made else len(made) - 1
        found[name] = prompt + made[:end]
    return found


def check(model: Any, receiver: Receiver, sequences: dict[str, list[int]], layer: int = 1) -> None:
    rows = receiver.rows(layer)
    assert rows.keys() == sequences.keys()
    for name, tokens in sequences.items():
        assert worst_difference(rows[name], alone(model, tokens, layer)[0]) < TOLERANCE
