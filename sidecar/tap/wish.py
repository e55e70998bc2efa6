"""What ``STETHOSCOPE_TAP`` asks for: the one variable that puts a tap into an engine that loads plugins."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sidecar.types import TapPoint

VARIABLE = "STETHOSCOPE_TAP"
_OFF = ("", "0", "off")
_HOOKS = "hooks:"
_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Wish:
    """points: None is what the sidecar asks for when the model is loaded. hooks: plain forward hooks, where nothing is compiled."""

    points: tuple[TapPoint, ...] | None
    hooks: bool = False


def parse_wish(text: str) -> Wish | None:
    """None if nothing is wanted. Raises ValueError, naming what is wrong.

    >>> [point.name for point in parse_wish("8, blocks.9.mlp_out").points]
    ['blocks.8.resid_post', 'blocks.9.mlp_out']
    >>> parse_wish("on"), parse_wish("off")
    (Wish(points=None, hooks=False), None)
    """
    text = text.strip()
    if text in _OFF:
        return None
    hooks = text.startswith(_HOOKS)
    names = text.removeprefix(_HOOKS).strip()
    if names in ("on", "1"):
        return Wish(None, hooks)
    return Wish(tuple(dict.fromkeys(_point(name.strip()) for name in names.split(","))), hooks)


def _point(name: str) -> TapPoint:
    if _LAYER.fullmatch(name):
        return TapPoint(int(name))
    try:
        return TapPoint.parse(name)
    except ValueError:
        raise ValueError(
            f"{VARIABLE}: {name!r} is no tap point; want on, off, or for example 8,14,blocks.9.mlp_out"
        ) from None
