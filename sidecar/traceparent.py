"""W3C trace context, level 1: what is not exactly valid is ignored by the caller, and counted."""

from __future__ import annotations

import re

from sidecar.types import TraceParent

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?P<more>-.*)?"
)
_MAX_CHARS = 256
_MAX_STATE_CHARS = 512


def parse_traceparent(header: str, state: str = "") -> TraceParent | None:
    """None if the header is malformed, all zeros, of version ff, or comes with an oversized tracestate.

    A higher version may carry more fields after a dash; version 00 may not.

    >>> parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").sampled
    True
    >>> parse_traceparent("00-00000000000000000000000000000000-b7ad6b7169203331-01") is None
    True
    """
    if len(header) > _MAX_CHARS or len(state) > _MAX_STATE_CHARS:
        return None
    match = _TRACEPARENT.fullmatch(header)
    if match is None or (match["more"] is not None and header.startswith("00")):
        return None
    return TraceParent(match[1], match[2], bool(int(match[3], 16) & 1))
