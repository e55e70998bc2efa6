"""Hidden states as vLLM itself keeps them, by a way that shares nothing with the tap: what a tap's rows are held against."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.engines.environment import HERE

WRITTEN_S = 60.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class States:
    """One request's tokens that were fed to the model, and the residual stream after each of the oracle's layers."""

    tokens: list[int]
    rows: npt.NDArray[np.float32]  # [T, layers, D], by absolute position


@dataclass(frozen=True, slots=True)
class Oracle:
    """Start a VllmServer with its ``flags`` and ``env``, send ``asked`` with each request, and read its states when it ended.

    folder: an empty one of its own, where vLLM writes. layers: of the model, from 0; the residual stream after each is kept.
    """

    folder: Path
    layers: tuple[int, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        # An id of vLLM's names the residual stream before that layer, so one after the last too.
        kept = {"eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in self.layers]}
        method = {"method": "extract_hidden_states", "num_speculative_tokens": 1}
        connector = {
            "kv_connector": "CpuHiddenStates",
            "kv_connector_module_path": "cpu_hidden_states",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(self.folder)},
        }
        speculative = json.dumps({**method, "draft_model_config": {"hf_config": kept}})
        return (f"--speculative-config={speculative}", f"--kv-transfer-config={json.dumps(connector)}")

    @property
    def env(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(HERE / "inside")}

    @property
    def asked(self) -> Mapping[str, Any]:
        """Without it vLLM writes the prompt's states alone."""
        return {"kv_transfer_params": {"include_output_tokens": True}}

    def states(self, request_id: str) -> States:
        """Return the states of an ended request, by the id that the client gave; waits until they are written.

        Raises LookupError if vLLM never scheduled it, or wrote more than one of that id.
        """
        found = sorted(self.folder.glob(f"cmpl-{request_id}-0-*.safetensors.lock"))
        if len(found) != 1:
            raise LookupError(f"{len(found)} requests called {request_id!r}")
        return _read(found[0])


def _read(lock: Path) -> States:
    """Read what the lock is for once its writer let go of it."""
    import torch
    from safetensors.torch import load_file

    with lock.open() as held:
        _share(held.fileno(), time.monotonic() + WRITTEN_S)
        kept = load_file(lock.with_suffix(""))
    return States(kept["token_ids"].tolist(), kept["hidden_states"].to(torch.float32).numpy())


def _share(descriptor: int, ends_s: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(_POLL_S)
