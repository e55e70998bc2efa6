"""Where the two sides of the socket meet, and what is said there: the same rules for the sidecar and for the tap."""

from __future__ import annotations

import os
import tempfile

INGEST, CONTROL = "stethoscope.v1.IngestService", "stethoscope.v1.ControlService"
STREAM, OBSERVE = f"/{INGEST}/Stream", f"/{INGEST}/Observe"
REGISTER, FETCH_PLAN, GET_STATUS = (f"/{CONTROL}/{name}" for name in ("Register", "FetchPlan", "GetStatus"))
_UNIX = "unix:"


def default_address() -> str:
    """A socket in a folder of this user's own: $XDG_RUNTIME_DIR if there is one, otherwise the temporary folder."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return f"{_UNIX}{base}/stethoscope-{os.getuid()}/sidecar.sock"


def socket_path(address: str) -> str | None:
    """The path of a Unix address; None for TCP."""
    return address.removeprefix(_UNIX) if address.startswith(_UNIX) else None


def ring_path(address: str) -> str | None:
    """The socket at which the descriptors of rings are handed out; None for TCP, which cannot carry them."""
    path = socket_path(address)
    return None if path is None else f"{path}.ring"
