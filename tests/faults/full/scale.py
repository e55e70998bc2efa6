"""How much is asked: the short form runs with every change, the full one when somebody asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass

FULL = os.environ.get("FULL", "0") not in ("", "0")


@dataclass(frozen=True, slots=True)
class Scale:
    """Every load is bounded by these."""

    capacity_s: float  # the sidecar's capacity is measured before and after an overload for so long
    overload_s: float
    quiet_s: float
    vanished: int
    freeze_s: float
    kills: int
    reloads: int
    pairs: int  # of rounds with and without the tap


SHORT = Scale(1.5, 4.0, 3.0, 20, 2.0, 6, 60, 4)
LONG = Scale(5.0, 60.0, 20.0, 200, 10.0, 60, 1000, 16)
SCALE = LONG if FULL else SHORT
