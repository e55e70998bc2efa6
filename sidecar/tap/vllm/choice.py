"""Which tap points a worker takes of the model that it has loaded, or why it takes none."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from sidecar.tap.client import TapClient
from sidecar.tap.faults import TapRefusedError
from sidecar.tap.switch import VARIABLE
from sidecar.tap.vllm.known import refusal
from sidecar.tap.vllm.sites import NotHereError
from sidecar.tap.wish import Wish
from sidecar.types import Site, Stack, TapPoint

_ASK_S = 10.0


def check(runner: Any, config: Any, version: str, wish: Wish) -> None:
    """Raises TapRefusedError for what is not tapped at all. version: of the runner, as ``known`` names it."""
    why = refusal(version)
    if why:
        raise TapRefusedError(why)
    if wish.hooks and compiled(config):
        raise TapRefusedError(
            "nothing says that a compiled model runs plain hooks: serve with --enforce-eager, or leave out 'hooks:'"
        )
    if getattr(runner, "pcp_manager", None) is not None:
        raise TapRefusedError("prefill context parallelism deals the rows of a request to several ranks")
    if getattr(runner, "adaptive_verification", None) is not None:
        raise TapRefusedError("adaptive verification decides on the device which rows there are")
    if config.parallel_config.use_ubatching:  # buffers would hold the rows of the last part, and nothing would say so
        raise TapRefusedError("micro-batches compute the rows of a step in parts, one after the other")


def compiled(config: Any) -> bool:
    from vllm.config import CompilationMode

    return bool(config.compilation_config.mode != CompilationMode.NONE)


def ask(client: TapClient) -> tuple[TapPoint, ...]:
    """What the sidecar wants. The model is about to be compiled: what is not known by then is never seen."""
    pause, waited = threading.Event(), 0.0
    while not client.settings.tap_points:
        if waited >= _ASK_S:
            raise TapRefusedError(
                f"no sidecar said within {_ASK_S:g} s which tap points it wants; name them: {VARIABLE}=8,14"
            )
        pause.wait(0.05)
        waited += 0.05
    return client.settings.tap_points


def here(points: Iterable[TapPoint], layers: dict[int, Any], config: Any) -> tuple[TapPoint, ...]:
    """Those of this stage, in order. Raises NotHereError for a block that the whole model has not."""
    depth = int(config.model_config.hf_text_config.num_hidden_layers)
    wanted = sorted(set(points))
    for point in wanted:
        if point.stack is not Stack.DECODER:
            raise NotHereError(f"{point.name}: of an encoder nothing is captured here")
        if point.layer >= depth:
            raise NotHereError(f"{point.name}: the model's blocks are 0 to {depth - 1}")
        if point.site is Site.ATTN_HEADS and config.parallel_config.tensor_parallel_size > 1:
            raise NotHereError(f"{point.name}: heads lie on several ranks under tensor parallelism")
    return tuple(point for point in wanted if point.layer in layers)
