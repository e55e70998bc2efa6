"""Prints, as JSON, what our plugin does to processes of SGLang: without its variable, without a scheduler, and with both."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import entry_points
from types import ModuleType

from stand_ins import stand_in

stand_in("triton", "IPython", "orjson")

from sglang.srt.plugins import load_plugins  # noqa: E402 - behind the stand-ins
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402

SCHEDULER = "sglang.srt.managers.scheduler"

before = set(sys.modules)
load_plugins()
looked = {
    "modules": sorted(name for name in set(sys.modules) - before if name.split(".")[0] == "sidecar"),
    "untapped": list(HookRegistry._hooks),
}
os.environ["STETHOSCOPE_TAP"] = "on"
(ours,) = entry_points(group="sglang.srt.plugins", name="stethoscope")
ours.load()()
looked["without a scheduler"] = list(HookRegistry._hooks)
from sidecar.tap.sglang import known, plugin  # noqa: E402 - what it brings was looked at

sys.modules[SCHEDULER] = ModuleType(SCHEDULER)  # as if it had been imported
versions, known.KNOWN = known.KNOWN, {}
said: list[str] = []
plugin.log.error = lambda text, *values: said.append(text % values)  # type: ignore[method-assign]
ours.load()()
looked["unknown"] = [*HookRegistry._hooks, *said]
known.KNOWN, plugin._done = versions, False
said.clear()
os.environ["STETHOSCOPE_QUEUE_S"] = "soon"
ours.load()()
looked["refused"] = [*HookRegistry._hooks, *said]
plugin._done = False
del os.environ["STETHOSCOPE_QUEUE_S"]
ours.load()()
print(json.dumps({**looked, "tapped": len(HookRegistry._hooks)}))
