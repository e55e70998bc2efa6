"""Stand-ins for modules that need a GPU, so that the modules that import them can be imported without one."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Anything(type):
    """A class for every name that is asked of a stand-in; as a decorator it leaves alone what it decorates."""

    def __getattr__(cls, name: str) -> Any:
        return _named(name)

    def __call__(cls, *args: Any, **_kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else super().__call__()

    def __or__(cls, _other: Any) -> Any:
        return cls

    __ror__ = __getitem__ = __or__


class _Thing(metaclass=_Anything):
    def __getattr__(self, name: str) -> Any:
        return _named(name)

    def __call__(self, *args: Any, **_kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self


def _named(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (_Thing,), {})


class _StandIn(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes it a package
    __version__ = "3.5.0"

    def __getattr__(self, name: str) -> Any:
        return _named(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: Any = None) -> ModuleSpec | None:
        if any(name == one or name.startswith(f"{one}.") for one in self._names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        return None


def stand_in(*names: str) -> None:
    """From here on, these modules and all below them are stand-ins."""
    sys.meta_path.insert(0, _Finder(names))
