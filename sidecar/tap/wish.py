"""What the environment asks for where an engine loads plugins: ``STETHOSCOPE_TAP``, once it is on, and what bounds the tap."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from sidecar.tap.faults import TapRefusedError
from sidecar.tap.limits import LinkLimits, limits_from_environment
from sidecar.tap.switch import VARIABLE
from sidecar.types import TapPoint

_HOOKS = "hooks:"
_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Wish:
    """points: None is what the sidecar asks for when the model is loaded. hooks: plain forward hooks, where nothing is compiled."""

    points: tuple[TapPoint, ...] | None
    hooks: bool = False
    limits: LinkLimits = field(default_factory=LinkLimits)


def wish_from_environment() -> Wish:
    """Raises TapRefusedError, naming the variable that makes no sense."""
    try:
        return replace(parse_wish(os.environ.get(VARIABLE, "")), limits=limits_from_environment())
    except ValueError as error:
        raise TapRefusedError(str(error)) from None


def parse_wish(text: str) -> Wish:
    """Read ``STETHOSCOPE_TAP``. Raises ValueError, naming what is wrong.

    >>> [point.name for point in parse_wish("8, blocks.9.mlp_out").points]
    ['blocks.8.resid_post', 'blocks.9.mlp_out']
    >>> parse_wish("hooks:on").points is None
    True
    """
    text = text.strip()
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
