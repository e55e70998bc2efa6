"""The versions of vLLM that the tap knows, by the source of what it wraps and of what it relies on."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.tap.source import Names, unknown_source

PLUGIN = (
    ("v1/worker/worker_base.py", "WorkerBase.__init__"),
    ("v1/core/sched/output.py", "NewRequestData"),
    ("v1/core/sched/output.py", "SchedulerOutput"),
)
_AUXILIARY = (
    ("model_executor/models/interfaces.py", "EagleModelMixin._maybe_add_hidden_state"),
    ("model_executor/models/interfaces.py", "SupportsEagle3.set_aux_hidden_state_layers"),
    ("config/vllm.py", "VllmConfig.compute_hash"),
)
V1 = (
    *_AUXILIARY,
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner._model_forward"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner._update_states"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner.execute_model"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner.sample_tokens"),
)
V2 = (
    *_AUXILIARY,
    ("v1/worker/gpu/input_batch.py", "InputBatch"),
    ("v1/worker/gpu/model_runner.py", "ExecuteModelState"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.prepare_inputs"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.execute_model"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.sample_tokens"),
)

KNOWN: Mapping[str, Mapping[str, str]] = {
    "plugin": {"10be6fdd13fb6cdd": "0.32.0", "a1ec6d03513255ee": "0.33.0"},
    "v1": {"6d1b8ce41925d8b9": "0.32.0 and 0.33.0"},
    "v2": {"48d61e2fe75f79d1": "0.32.0", "b3f66a64777f6445": "0.33.0"},
}
"""Digest of the sources, and the versions that have them."""

_NAMES: Mapping[str, Names] = {"plugin": PLUGIN, "v1": V1, "v2": V2}


def refusal(part: str = "plugin") -> str:
    """Why this vLLM is not tapped; empty if it is known."""
    return unknown_source("vllm", part, _NAMES[part], KNOWN[part])
