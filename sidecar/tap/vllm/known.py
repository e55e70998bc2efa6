"""The versions of vLLM that the tap knows, by the source of what it wraps and of what it relies on.

A version number says little: forks, nightlies and backports carry their own. So the text of each function is hashed. What is not
known is not tapped, and the log says so: states that belong to other rows than we think would be worse than none.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

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
"""Functions and classes, by file under the package."""

Names = Iterable[tuple[str, str]]

KNOWN: Mapping[str, Mapping[str, str]] = {
    "plugin": {"10be6fdd13fb6cdd": "0.32.0", "a1ec6d03513255ee": "0.33.0"},
    "v1": {"6d1b8ce41925d8b9": "0.32.0 and 0.33.0"},
    "v2": {"48d61e2fe75f79d1": "0.32.0", "b3f66a64777f6445": "0.33.0"},
}
"""Digest of the sources, and the versions that have them."""

_NAMES: Mapping[str, Names] = {"plugin": PLUGIN, "v1": V1, "v2": V2}


def refusal(part: str = "plugin") -> str:
    """Why this vLLM is not tapped; empty if it is known."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return "vllm is not installed"
    digest = source_digest(Path(next(iter(spec.submodule_search_locations))), _NAMES[part])
    if digest in KNOWN[part]:
        return ""
    known = ", ".join(sorted(KNOWN[part].values()))
    return f"the source of this vLLM is not one that the tap knows (part {part}, {digest}; known: {known})"


def source_digest(package: Path, names: Names) -> str:
    """First 16 hex digits of the SHA-256 over the sources. What is missing counts as empty: another digest, never an error."""
    seen = hashlib.sha256()
    trees: dict[str, tuple[str, ast.Module]] = {}
    for file, name in names:
        if file not in trees:
            path = package / file
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            trees[file] = (text, ast.parse(text))
        seen.update(f"{file}|{name}|{_source(*trees[file], name)}\n".encode())
    return seen.hexdigest()[:16]


def _source(text: str, tree: ast.Module, name: str) -> str:
    node: ast.AST = tree
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
        if not found:
            return ""
        node = found[-1]
    return ast.get_source_segment(text, node) or ""
