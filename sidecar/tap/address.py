"""Where the sidecar listens and who we are, by the same rules on both sides of the socket."""

from __future__ import annotations

import os
import re
import socket

from sidecar import address

ADDRESS_VARIABLE = "STETHOSCOPE_ADDRESS"
ENGINE_VARIABLE = "STETHOSCOPE_ENGINE_ID"
_STAGE = "{stage}"
_NOT_AN_ID = re.compile(r"[^A-Za-z0-9._:/@#+=~-]+")


def default_address(stage: int = 0) -> str:
    """$STETHOSCOPE_ADDRESS, else the socket in this user's own folder that a sidecar without configuration listens on.

    stage: of a pipeline, whose processes have one environment and other weights each. The number takes the place of ``{stage}``
    in the variable, so that each stage finds a sidecar of its own.
    """
    told = os.environ.get(ADDRESS_VARIABLE)
    return told.replace(_STAGE, str(stage)) if told else address.default_address()


def default_engine_id(engine: str) -> str:
    """$STETHOSCOPE_ENGINE_ID, else engine and host name: the same after a restart. Two engines on one host must be told apart."""
    told = os.environ.get(ENGINE_VARIABLE) or f"{engine}@{socket.gethostname()}"
    return _NOT_AN_ID.sub("_", told)[:128]
