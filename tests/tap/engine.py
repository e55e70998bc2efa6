"""What the tests of a tapped model share: a tap that is connected, and the states computed apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sidecar.tap.limits import LinkLimits
from sidecar.tap.transformers import attach
from sidecar.tap.transformers.tap import Tap
from tests.tap.models import PAD
from tests.tap.receiver import Receiver, Rows
from tests.waiting import until

Values = npt.NDArray[np.float32]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]


@contextmanager
def tapped(model: Any, receiver: Receiver, **settings: Any) -> Iterator[Tap]:
    """A connected tap; on leaving, everything was delivered and the goodbye has arrived. Nothing is dropped for being late."""
    if "client" not in settings:
        settings.setdefault("limits", LinkLimits(queue_s=60.0))
    tap = attach(model, address=receiver.address, engine_id="engine", **settings)
    try:
        until(lambda: tap.client.connected)
        yield tap
    finally:
        goodbyes = receiver.goodbyes
        tap.detach(10.0)
    receiver.wait(lambda r: r.goodbyes > goodbyes)


def left_padded(prompts: Sequence[Sequence[int]] = PROMPTS) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def alone(model: Any, tokens: Sequence[int], *layers: int, **more: Any) -> list[Values]:
    """States after each of the blocks for one unpadded sequence, [T, D] each, by the model's own ``hidden_states``.

    more: pictures of the sequence, for one. The last entry of ``hidden_states`` is after the final norm, so a last block cannot
    be asked for.
    """
    with torch.no_grad():
        states = model(torch.tensor([list(tokens)]), output_hidden_states=True, **more).hidden_states
    assert max(layers) + 2 < len(states)
    return [states[layer + 1][0].float().numpy() for layer in layers]


def worst_difference(rows: Rows, wanted: Values) -> float:
    """Fails unless the rows are exactly the positions of ``wanted``."""
    assert sorted(rows) == list(range(len(wanted)))
    return max(float(np.abs(rows[position] - wanted[position]).max()) for position in rows)


def padding_noise(model: Any, prompts: Sequence[Sequence[int]], *layers: int) -> list[float]:
    """How far padding and batching alone move this model's states, without any tap: the tolerance, taken from data."""
    batch = left_padded(prompts)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        states = model(**batch, position_ids=positions, output_hidden_states=True).hidden_states
    worst = [0.0] * len(layers)
    for row, prompt in enumerate(prompts):
        for number, (layer, apart) in enumerate(zip(layers, alone(model, prompt, *layers), strict=True)):
            padded = states[layer + 1][row, -len(prompt) :].float().numpy()
            worst[number] = max(worst[number], float(np.abs(padded - apart).max()))
    return worst
