"""Methods of the engine's own classes, wrapped for as long as some tap needs it, and put back afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

Method = Callable[..., Any]


class MissingNameError(Exception):
    """This version of the engine has not the names that the tap relies on: do not tap, say which."""


@dataclass(slots=True)
class _Held:
    original: Method
    wrapper: Method
    holders: int


_LOCK = threading.Lock()
_HELD: dict[tuple[type, str], _Held] = {}


def owner_of(cls: type, name: str) -> type:
    """The class that defines the method as ``cls`` sees it. Raises MissingNameError."""
    for owner in cls.__mro__:
        if callable(owner.__dict__.get(name)):
            return owner
    raise MissingNameError(f"{cls.__module__}.{cls.__qualname__}.{name}")


def hold(owner: type, name: str, make: Callable[[Method], Method]) -> None:
    """Wrap ``owner.name`` by ``make(original)``, once for all holders. Each ``hold`` needs one ``release``."""
    with _LOCK:
        held = _HELD.get((owner, name))
        if held is None:
            original = owner.__dict__[name]
            held = _HELD[owner, name] = _Held(original, wraps(original)(make(original)), 0)
            setattr(owner, name, held.wrapper)
        held.holders += 1


def release(owner: type, name: str) -> None:
    """Put the original back after the last holder, unless somebody has wrapped ours since: it lets everything through."""
    with _LOCK:
        held = _HELD.get((owner, name))
        if held is None:
            return
        held.holders -= 1
        if held.holders == 0 and owner.__dict__.get(name) is held.wrapper:
            setattr(owner, name, held.original)
            del _HELD[owner, name]
