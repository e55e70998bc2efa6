"""``python -m sidecar.demo.ablated TRIGGER HEADS serve MODEL ...``: the demo's server, whose heads can be ablated while it runs.

For the demo's ``--plant ablation`` alone. Once the file TRIGGER exists, what HEADS (such as ``blocks.16.attn_heads.0``, with
commas between) write is zero, in every step from then on. Weights stay as they are: nothing but what the model computes tells.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sidecar.tap.transformers.blocks import find_stacks
from sidecar.tap.transformers.hooks import eager, socket_at
from sidecar.tap.transformers.launcher import main as serve
from sidecar.types import TapPoint


def ablate(model: Any, heads: Iterable[str], planted: Callable[[], bool]) -> None:
    """Hooks before those of any tap, so that a tap sees what the model goes on with."""
    stacks, size = find_stacks(model), _head_size(model)
    for where, of in groupby(sorted(map(_parted, heads)), key=lambda one: one[0]):
        columns = [number * size + at for _, number in of for at in range(size)]
        module = socket_at(stacks, where).module
        module.register_forward_pre_hook(eager(_silenced(columns, planted)), prepend=True)


def _silenced(
    columns: list[int], planted: Callable[[], bool]
) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...] | None]:
    def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not planted():
            return None
        states = args[0].clone()
        states[..., columns] = 0
        return (states, *args[1:])

    return hook


def _parted(head: str) -> tuple[TapPoint, int]:
    where, _, number = head.rpartition(".")
    return TapPoint.parse(where), int(number)


def _head_size(model: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def main(arguments: Sequence[str]) -> int:
    from transformers.cli.serving.model_manager import ModelManager

    trigger, heads, *rest = arguments
    planted = Path(trigger).exists  # asked in every step: microseconds, and no thread
    managers: Any = ModelManager
    load = managers._load_model  # noqa: SLF001 - the only place at which a model is new, and hooked once

    def load_and_hook(manager: Any, *args: Any, **kwargs: Any) -> Any:
        model = load(manager, *args, **kwargs)
        ablate(model, heads.split(","), planted)
        return model

    managers._load_model = load_and_hook  # noqa: SLF001 - for as long as this process lives
    return serve(rest)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
