"""What a client of ``transformers serve`` is told of a chat completion that was stopped: finish_reason ``content_filter``.

The server knows "stop", "length" and "tool_calls" only, and would call it "stop". Its other answers (legacy completions,
responses) end in the same way and are left as they are.
"""

from __future__ import annotations

from typing import Any

from sidecar.tap.patches import Method
from sidecar.tap.step import wire_id

STOPPED = "content_filter"


def wrap_answer(original: Method) -> Method:
    """For the methods that write an answer, or a piece of one; only the last piece has a finish_reason."""

    def build(handler: Any, request_id: str = "", *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("finish_reason") is not None and _was_stopped(request_id):
            kwargs["finish_reason"] = STOPPED
        return original(handler, request_id, *args, **kwargs)

    return build


def _was_stopped(request_id: str) -> bool:
    from sidecar.tap.transformers.tap import all_taps

    return any(tap.claim_stopped(wire_id(request_id)) for tap in all_taps())
