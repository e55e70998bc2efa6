"""Prints, as JSON, what our plugin does to a vLLM whose sources it does not know: what it says, and what it replaces."""

from __future__ import annotations

import json
import logging

import vllm.v1.worker.gpu_worker  # noqa: F401 - what a tap could have changed is loaded before it could
from vllm.plugins import load_general_plugins
from what_is_ours import replaced

from sidecar.tap.vllm import known

known.KNOWN = {part: {"0" * 16: "0.1.0"} for part in known.KNOWN}


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.levelname} {record.getMessage()}")


kept = Kept()
logging.getLogger("vllm").addHandler(kept)
load_general_plugins()
print(json.dumps({"said": kept.said, "replaced": sorted(set(replaced()))}))
