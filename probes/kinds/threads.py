"""One thread for numerical code: several add up in any order, and a fit must come out the same twice."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any


def one_thread() -> AbstractContextManager[Any]:
    """Limit numpy's, scipy's and scikit-learn's libraries to a thread, for as long as the context lasts."""
    limit: AbstractContextManager[Any] = _controller().limit(limits=1)
    return limit


@cache
def _controller() -> Any:
    """Found once: looking through a process's libraries takes 7 ms, as long as a small fit."""
    import scipy.linalg  # noqa: F401  # so that their libraries are there to be found
    import sklearn.linear_model  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
