"""An environment with an engine that somebody else made: vLLM for CUDA, and this package beside it, on a machine with a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.engines.environment import Environment

PYTHON = os.environ.get("VLLM_PYTHON", "")  # its interpreter


@dataclass(frozen=True, slots=True)
class Installed(Environment):
    """folder: ours, for what vLLM compiles; the interpreter is where it is."""

    interpreter: Path = Path(PYTHON)

    @property
    def python(self) -> Path:
        return self.interpreter
