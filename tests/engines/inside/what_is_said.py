"""Prints, as JSON, what our plugin says when vLLM loads it with whatever is set, and what it replaces."""

from __future__ import annotations

import json
import logging
from typing import Any

import vllm.v1.worker.gpu_worker  # noqa: F401 - what a tap could have changed is loaded before it could
from vllm.plugins import load_general_plugins
from what_is_ours import replaced


class Said(logging.Handler):
    """What goes to vLLM's log, or to the tap's own, from here on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("vllm").addHandler(self)
        logging.getLogger("stethoscope").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def loaded() -> dict[str, Any]:
    said = Said()
    load_general_plugins()
    return {"said": said.lines, "replaced": sorted(set(replaced()))}


if __name__ == "__main__":
    print(json.dumps(loaded()))
