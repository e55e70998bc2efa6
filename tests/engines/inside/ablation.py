"""An attention that writes nothing any more, in a running vLLM: what a canary must see.

For ``--worker-extension-cls=ablation.Ablation``; ``VLLM_SERVER_DEV_MODE=1`` has it called over HTTP.
"""

from __future__ import annotations

from typing import Any

import torch


class Ablation:
    """What vLLM mixes into its worker's class."""

    model_runner: Any

    def ablate_attention(self, block: str) -> str:
        """Zero the norm before a block's attention: its values are zero then, and so is what every head of it puts out."""
        weight = self.model_runner.get_model().model.layers[int(block)].input_layernorm.weight
        with torch.no_grad():
            weight.zero_()
        return f"block {block} of {len(weight)} columns"
