"""The types that an engine computes in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from probes.activations.model import LabModel
from sidecar.tap.identity import identify
from sidecar.types import ModelIdentity

FLOAT32, BFLOAT16 = "float32", "bfloat16"


def numerics_of(lab: LabModel, numerics: str) -> tuple[Any, ModelIdentity]:
    """The model, and what its engine says that it is.

    bfloat16 is computed in float32, weights and what every module puts out being rounded: as its kernels do, which add in
    float32 and round what they write. A CPU without such units takes ten times as long for the same.
    """
    if numerics == FLOAT32:
        return lab.model, lab.identity
    model = copy.deepcopy(lab.model).to(torch.bfloat16)
    identity = identify(model, lab.tokenizer, name=lab.name)
    model = model.float()
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) and module is not model:
            module.register_forward_hook(_rounding)
    return model, identity


def _rounding(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        return output.to(torch.bfloat16).float()
    if isinstance(output, tuple):
        return tuple(_rounding(_module, _inputs, one) for one in output)
    return output
