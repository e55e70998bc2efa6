"""vLLM's own connector for hidden states, made to run without CUDA: loaded by vLLM, in its process.

It is what the tap is compared with: vLLM keeps the states in its key-value cache and this reads them there once a request has
ended, those of prefix-cached positions too. Nothing of it is ours but where the copy is made.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    extract_from_kv_cache,
)


class _Copied:
    """What stands for a CUDA event where a copy is finished when the call returns."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


class CpuHiddenStates(ExampleHiddenStatesConnector):  # type: ignore[misc] # vLLM's classes are not known where this is checked
    def _submit_async_write(self, pending: Any) -> None:
        """Write an ended request's states: "hidden_states" [T, layers, D], "token_ids" [T]. On this thread, before it goes on."""
        if not self._is_tp_rank_zero:
            return
        tokens = pending.token_ids
        rows = extract_from_kv_cache(self._kv_cache, self._slots(pending.block_ids), len(tokens))
        done, lock = _Copied(), self._lock_fds.pop(pending.req_id, None)
        self._req_copy_events[pending.req_id] = done
        written = {"hidden_states": rows.contiguous(), "token_ids": tokens.clone()}
        self._write_tensors(written, done, pending.filename, lock)

    def _slots(self, blocks: list[int]) -> torch.Tensor:
        """Where the positions of a request lie, in order, whose blocks these are."""
        first = torch.tensor(blocks, dtype=torch.long)[:, None] * self._block_size
        slots: torch.Tensor = first + torch.arange(self._block_size)
        return slots.flatten()
