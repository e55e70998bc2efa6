"""The configuration: one frozen tree of sections, and the only way to one that may be served with."""

from sidecar.config.loading import load_config
from sidecar.config.sections import (
    Budget,
    Canary,
    Circuits,
    Coverage,
    Ladder,
    Limits,
    Listen,
    Marks,
    Ring,
    Traces,
    Verdicts,
)
from sidecar.config.tree import Config

__all__ = [
    "Budget",
    "Canary",
    "Circuits",
    "Config",
    "Coverage",
    "Ladder",
    "Limits",
    "Listen",
    "Marks",
    "Ring",
    "Traces",
    "Verdicts",
    "load_config",
]
