"""What a caller asked of the tap for one request, in the extra parameters that an engine carries to its worker.

``traceparent``; ``stethoscope``, "always" or "never", for sampling; ``stethoscope_route``, ``_tenant``, ``_language``,
``_session_hash``; and ``stethoscope_canary``, the token by which a canary is believed to be one.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from typing import Any

from sidecar.tap.step import RequestInfo

CANARY_VARIABLE = "STETHOSCOPE_CANARY_TOKEN"
_CHOSEN = {"always": True, "never": False}


def chosen(asked: Mapping[str, Any]) -> bool | None:
    """The caller's own wish to be captured; None leaves it to the sampling.

    >>> chosen({"stethoscope": "always"}), chosen({})
    (True, None)
    """
    return _CHOSEN.get(str(asked.get("stethoscope", "")))


def is_canary(given: object) -> bool:
    """Whether whoever gave this knows the token of the environment, in constant time. Where there is none, nobody is a canary."""
    token = os.environ.get(CANARY_VARIABLE, "").strip()
    return bool(token) and isinstance(given, str) and hmac.compare_digest(_bytes(token), _bytes(given))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # half a character is no token, and no error either


def request_info(name: str, asked: Mapping[str, Any], *, traceparent: str = "", adapter: str = "") -> RequestInfo:
    """traceparent: what the engine itself knows, if the caller did not say it here."""
    return RequestInfo(
        name,
        traceparent=str(asked.get("traceparent") or traceparent),
        route=str(asked.get("stethoscope_route", "")),
        tenant=str(asked.get("stethoscope_tenant", "")),
        language=str(asked.get("stethoscope_language", "")),
        session_id_hash=str(asked.get("stethoscope_session_hash", "")),
        canary=is_canary(asked.get("stethoscope_canary")),
        adapter=adapter,
    )
