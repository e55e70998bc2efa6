"""A forward pass that leaves no trace in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, without gradients, and as it is written, though it be compiled.

    Afterwards every module has the attributes and buffers that it had, its mode among them, and torch's random numbers go on
    where they were. What a model writes into a buffer in place stays written.
    """
    import torch

    device = _device(model)
    devices = [] if device.type in ("cpu", "meta") else sorted(_indices(model, device.type))
    before = [(vars(one), dict(vars(one)), dict(one._buffers)) for one in model.modules()]  # noqa: SLF001 - where a module keeps them
    random = torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
    with random, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            for attributes, _, _ in before:
                attributes["training"] = False  # ``eval()`` may be a model's own, and do more than that
            yield
        finally:
            for attributes, had, buffers in before:
                _restore(attributes, had)
                _restore(attributes["_buffers"], buffers)


def _restore(now: dict[str, Any], had: Mapping[str, Any]) -> None:
    """Only what is another object now: nothing else is written."""
    for name in now.keys() - had.keys():
        del now[name]
    for name, value in had.items():
        if now.get(name, had) is not value:
            now[name] = value


def _device(model: nn.Module) -> torch.device:
    import torch

    devices = (parameter.device for parameter in model.parameters())
    return next((one for one in devices if one.type not in ("cpu", "meta")), torch.device("cpu"))


def _indices(model: nn.Module, kind: str) -> set[int]:
    return {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == kind}
