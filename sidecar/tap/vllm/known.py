"""The versions of vLLM that the tap knows, by the source of what it wraps and of what it relies on."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.tap.source import Names, unknown_source

PLUGIN = (
    ("distributed/parallel_state.py", "GroupCoordinator.__init__"),
    ("distributed/parallel_state.py", "GroupCoordinator.is_last_rank"),
    ("distributed/parallel_state.py", "get_pp_group"),
    ("distributed/parallel_state.py", "get_tp_group"),
    ("distributed/parallel_state.py", "get_world_group"),
    ("v1/core/sched/output.py", "NewRequestData"),
    ("v1/core/sched/output.py", "SchedulerOutput"),
    ("v1/worker/cpu_worker.py", "CPUWorker.compile_or_warm_up_model"),
    ("v1/worker/gpu_worker.py", "Worker.compile_or_warm_up_model"),
    ("v1/worker/gpu_worker.py", "Worker.load_model"),
    ("v1/worker/worker_base.py", "WorkerBase.__init__"),
)
_BOTH = (
    ("config/model.py", "ModelConfig.get_head_size"),
    ("config/parallel.py", "ParallelConfig.use_ubatching"),
    ("config/vllm.py", "VllmConfig.compute_hash"),
    ("model_executor/models/interfaces.py", "EagleModelMixin._maybe_add_hidden_state"),
    ("model_executor/models/interfaces.py", "SupportsEagle3.set_aux_hidden_state_layers"),
    ("model_executor/models/interfaces.py", "supports_eagle3"),
)
V1 = (
    *_BOTH,
    ("v1/outputs.py", "ModelRunnerOutput"),
    ("v1/worker/cpu_model_runner.py", "CPUModelRunner.get_model"),
    ("v1/worker/gpu_input_batch.py", "InputBatch.num_reqs"),
    ("v1/worker/gpu_input_batch.py", "InputBatch.req_ids"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner._dummy_run"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner._model_forward"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner._update_states"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner.execute_model"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner.get_model"),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner.sample_tokens"),
)
V2 = (
    *_BOTH,
    ("v1/worker/gpu/input_batch.py", "InputBatch"),
    ("v1/worker/gpu/model_runner.py", "ExecuteModelState"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner._dummy_run"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.execute_model"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.finish_requests"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.get_model"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.prepare_inputs"),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner.sample_tokens"),
)

KNOWN: Mapping[str, Mapping[str, str]] = {
    "plugin": {"9de153f842736e5b": "0.32.0", "36adc25bac8e2531": "0.33.0"},
    "v1": {"dd9383d5a4ced681": "0.32.0 and 0.33.0"},
    "v2": {"94868896f93c5c67": "0.32.0", "2f5c753a2b1a7ecf": "0.33.0"},
}
"""Digest of the sources, and the versions that have them."""

_NAMES: Mapping[str, Names] = {"plugin": PLUGIN, "v1": V1, "v2": V2}


def refusal(part: str = "plugin") -> str:
    """Why this vLLM is not tapped; empty if it is known."""
    return unknown_source("vllm", part, _NAMES[part], KNOWN[part])
