"""What is wrapped of every class that generates, and which models somebody watches."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from sidecar.tap.patches import Method

if TYPE_CHECKING:
    from torch import nn


class Generates(Protocol):
    """Who follows a model's calls of ``generate``."""

    def generating(
        self, model: nn.Module, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any: ...

    def overhear(self, criteria: Any, config: Any) -> Any: ...


def _wrap_generate(original: Method) -> Method:
    def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        watch = WATCHES.get(model)
        if watch is None:
            return original(model, *args, **kwargs)
        return watch.generating(model, lambda: original(model, *args, **kwargs), args, kwargs)

    return generate


def _wrap_criteria(original: Method) -> Method:
    def get_stopping_criteria(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        criteria = original(model, *args, **kwargs)
        watch = WATCHES.get(model)
        if watch is None:
            return criteria
        return watch.overhear(criteria, kwargs["generation_config"] if "generation_config" in kwargs else args[0])

    return get_stopping_criteria


WRAPPERS = {"generate": _wrap_generate, "_get_stopping_criteria": _wrap_criteria}
WATCHES: weakref.WeakKeyDictionary[nn.Module, Generates] = weakref.WeakKeyDictionary()
