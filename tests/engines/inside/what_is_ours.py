"""Prints, as JSON, what our plugin does to a process of vLLM: first as vLLM loads it, then with ``STETHOSCOPE_TAP`` set."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any

import vllm.v1.core.sched.output
import vllm.v1.worker.gpu_model_runner
import vllm.v1.worker.gpu_worker
import vllm.v1.worker.worker_base  # noqa: F401 - what a tap could have changed is loaded before it could
from vllm.plugins import load_general_plugins


def replaced() -> Iterator[str]:
    """The names of vLLM's functions and methods whose code lies in our package."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "vllm":
            yield from (f"{name}.{found}" for found in _foreign(vars(module)))
            for one in [one for one in vars(module).values() if isinstance(one, type)]:
                yield from (f"{one.__qualname__}.{found}" for found in _foreign(vars(one)))


def _foreign(members: Mapping[str, Any]) -> list[str]:
    """The names whose function, or the one beneath a classmethod, was written in our package."""
    found = {
        name: one.__func__ if isinstance(one, (classmethod, staticmethod)) else one for name, one in members.items()
    }
    # By type: looking for attributes would have vLLM's placeholders import what they stand for.
    functions = {name: one for name, one in found.items() if isinstance(one, FunctionType)}
    return [name for name, one in functions.items() if "/sidecar/" in one.__code__.co_filename]


def _look(before: set[str]) -> dict[str, list[str]]:
    return {"modules": sorted(set(sys.modules) - before), "replaced": sorted(set(replaced()))}


def main() -> None:
    before = set(sys.modules)
    load_general_plugins()
    untapped = _look(before)
    os.environ["STETHOSCOPE_TAP"] = "1"
    (ours,) = entry_points(group="vllm.general_plugins", name="stethoscope")
    ours.load()()
    print(json.dumps({"untapped": untapped, "tapped": _look(before)}))


if __name__ == "__main__":
    main()
