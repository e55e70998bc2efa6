"""See or change states as they pass through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from probes.activations.sites import Socket

if TYPE_CHECKING:
    import torch
    from torch import nn

# Gets the states [texts, positions, D]; what it returns goes on in their place.
Act: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


@contextmanager
def acting_at(socket: Socket, act: Act) -> Iterator[None]:
    """While open, ``act`` gets the states of a tap point in each forward."""
    with acting_before(socket.module, act) if socket.reads_input else acting_after(socket.module, act):
        yield


@contextmanager
def acting_before(module: nn.Module, act: Act) -> Iterator[None]:
    """The same for what a module takes in."""
    handle = module.register_forward_pre_hook(lambda _module, inputs: (act(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def acting_after(module: nn.Module, act: Act) -> Iterator[None]:
    """The same for what a module, a block say, puts out."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: _with_first(output, act))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def returning(blocks: nn.ModuleList, last: torch.Tensor) -> Iterator[None]:
    """While open, ``blocks`` are not computed, and the last of them returns ``last``."""

    def passing(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    def given(*_args: Any, **_kwargs: Any) -> torch.Tensor:
        return last.clone()  # the next block may work in place

    for block in blocks:
        block.forward = passing
    blocks[-1].forward = given
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _with_first(output: Any, act: Act) -> Any:
    return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)
