"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_tile",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)
_PACKAGES = ("numpy", "torch", "transformers", "scikit-learn", "grpcio", "protobuf", "prometheus-client")


def describe() -> dict[str, Any]:
    """The processor and the flags that decide which product is the fastest, the system, and the versions of what computes."""
    facts = _cpu()
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "cpu": facts.get("model name", platform.machine()),
        "cpu_cache": facts.get("cache size", ""),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _TELLING if flag in flags],
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _cpu() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
