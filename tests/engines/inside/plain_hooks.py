"""Plain hooks in a compiled model, where the tap refuses them: hooks that its graph does not have, and that its replay skips.

For ``--worker-extension-cls=plain_hooks.Nothing``: vLLM loads this module in the worker's process, before the model.
"""

from __future__ import annotations

import torch

from sidecar.tap.sites import Socket
from sidecar.tap.vllm import choice, install
from sidecar.tap.vllm.shelf import Take


def hook_socket(socket: Socket, take: Take) -> object:
    """The tap's own hook; but while a compiler traces the model, which is the only time that it is called, it leaves no trace."""

    def plain(states: torch.Tensor, added: torch.Tensor | None) -> None:
        if not torch.compiler.is_compiling():
            take(states, added)

    return real(socket, plain)


real = install.hook_socket
install.hook_socket = hook_socket
choice.compiled = lambda _config: False


class Nothing:
    """What vLLM mixes into its worker's class."""
