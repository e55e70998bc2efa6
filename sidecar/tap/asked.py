"""What a caller asked of the tap for one request, in the extra parameters that an engine carries to its worker.

``traceparent``; ``stethoscope``, "always" or "never", for sampling; and ``stethoscope_route``, ``_tenant``, ``_language``,
``_session_hash``, ``_canary``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.tap.step import RequestInfo

_CHOSEN = {"always": True, "never": False}


def chosen(asked: Mapping[str, Any]) -> bool | None:
    """The caller's own wish to be captured; None leaves it to the sampling.

    >>> chosen({"stethoscope": "always"}), chosen({})
    (True, None)
    """
    return _CHOSEN.get(str(asked.get("stethoscope", "")))


def request_info(name: str, asked: Mapping[str, Any], *, traceparent: str = "", adapter: str = "") -> RequestInfo:
    """traceparent: what the engine itself knows, if the caller did not say it here."""
    return RequestInfo(
        name,
        traceparent=str(asked.get("traceparent") or traceparent),
        route=str(asked.get("stethoscope_route", "")),
        tenant=str(asked.get("stethoscope_tenant", "")),
        language=str(asked.get("stethoscope_language", "")),
        session_id_hash=str(asked.get("stethoscope_session_hash", "")),
        canary=str(asked.get("stethoscope_canary", "")).lower() in ("1", "true"),
        adapter=adapter,
    )
