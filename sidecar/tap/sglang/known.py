"""The versions of SGLang that the tap knows, by the source of what it wraps and of what it relies on."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.tap.source import unknown_source

NAMES = (
    ("srt/plugins/hook_registry.py", "HookRegistry"),
    ("srt/plugins/hook_registry.py", "_wrap_fn"),
    ("srt/managers/tp_worker.py", "TpModelWorker.init_attention_backends"),
    ("srt/managers/tp_worker.py", "TpModelWorker.forward_batch_generation"),
    ("srt/managers/scheduler.py", "Scheduler.process_batch_result"),
    ("srt/managers/schedule_batch.py", "ScheduleBatch.prepare_for_extend"),
    ("srt/managers/schedule_batch.py", "ScheduleBatch.prepare_for_decode"),
    ("srt/managers/schedule_batch.py", "ScheduleBatch.mix_with_running"),
    ("srt/managers/schedule_batch.py", "Req.finished"),
    ("srt/model_executor/forward_batch_info.py", "ForwardMode"),
    ("srt/model_executor/forward_batch_info.py", "ForwardBatch.init_new"),
    ("srt/model_executor/model_runner.py", "ModelRunner.init_attention_backends"),
    ("srt/layers/logits_processor.py", "LogitsProcessor._get_hidden_states_to_store"),
    ("srt/layers/aux_hidden_states.py", "pack_aux_hidden_states"),
)

KNOWN: Mapping[str, str] = {"6e19f5994ea3f612": "0.5.23"}
"""Digest of the sources, and the versions that have them."""


def refusal() -> str:
    """Why this SGLang is not tapped; empty if it is known."""
    return unknown_source("sglang", "worker", NAMES, KNOWN)
