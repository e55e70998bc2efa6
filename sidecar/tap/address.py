"""Where the sidecar listens and who we are, by the same rules on both sides of the socket."""

from __future__ import annotations

import os
import re
import socket
import tempfile

ADDRESS_VARIABLE = "STETHOSCOPE_ADDRESS"
ENGINE_VARIABLE = "STETHOSCOPE_ENGINE_ID"
_NOT_AN_ID = re.compile(r"[^A-Za-z0-9._:/@#+=~-]+")


def default_address() -> str:
    """$STETHOSCOPE_ADDRESS, else the socket in this user's own folder that a sidecar without configuration listens on."""
    told = os.environ.get(ADDRESS_VARIABLE)
    if told:
        return told
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return f"unix:{base}/stethoscope-{os.getuid()}/sidecar.sock"


def default_engine_id(engine: str) -> str:
    """$STETHOSCOPE_ENGINE_ID, else engine and host name: the same after a restart. Two engines on one host must be told apart."""
    told = os.environ.get(ENGINE_VARIABLE) or f"{engine}@{socket.gethostname()}"
    return _NOT_AN_ID.sub("_", told)[:128]
