"""Prints, as JSON, what our plugin does to a vLLM whose sources it does not know: what it says, and what it replaces."""

from __future__ import annotations

import json

from what_is_said import loaded

from sidecar.tap.vllm import known

known.KNOWN = {part: {"0" * 16: "0.1.0"} for part in known.KNOWN}
print(json.dumps(loaded()))
