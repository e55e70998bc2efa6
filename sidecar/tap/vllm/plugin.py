"""vLLM's way in: it calls ``register`` in every one of its processes, and nothing happens there unless ``STETHOSCOPE_TAP`` is set.

What is wrapped is wrapped once a process: how a worker is made, and what the scheduler says of a new request. The tap itself
starts in the worker, when its model is loaded.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sidecar.tap.switch import is_on, switch_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.tap.wish import Wish

log = logging.getLogger("vllm.stethoscope")  # vLLM shows what is logged below its own name
_NOT_TAPPED = "not_tapped: vLLM goes on as it is"
_NOT_TESTED = "self_test_failed: whether states come is not known; the tap stays, and vLLM goes on"
_done = False


def register() -> None:
    """Called by vLLM, in every process, maybe more than once. Raises nothing."""
    global _done  # noqa: PLW0603 - once a process, and a process is what vLLM has many of
    if _done or not is_on():
        return
    _done = True
    switch_on(_register, "vLLM", log)


def _register(wish: Wish) -> None:
    from sidecar.tap.faults import TapRefusedError
    from sidecar.tap.vllm.known import refusal

    why = refusal()
    if why:
        raise TapRefusedError(why)
    _wrap_requests()
    _wrap_workers(wish)


def _wrap_requests() -> None:
    """In the engine's process: the caller's trace goes along to the worker, which is not told it otherwise."""
    from vllm.v1.core.sched.output import NewRequestData

    from sidecar.tap.faults import Faults

    original: Any = NewRequestData.from_request.__func__
    faults = Faults()

    def from_request(cls: type, request: Any, *args: Any, **kwargs: Any) -> Any:
        told = original(cls, request, *args, **kwargs)
        try:
            headers = getattr(request, "trace_headers", None)
            if headers:
                told.trace_headers = dict(headers)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            faults.note("new_request", error)
        return told

    NewRequestData.from_request = classmethod(from_request)


def _wrap_workers(wish: Wish) -> None:
    """In the worker's process: the tap goes on between the loading of the model and its compilation.

    A worker's process calls us when it is about to make its worker: whatever wraps an earlier step is too late.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    original = WorkerBase.__init__

    def init(worker: Any, *args: Any, **kwargs: Any) -> None:
        original(worker, *args, **kwargs)
        worker.load_model = _then(worker.load_model, lambda: _install(worker, wish), _NOT_TAPPED)
        worker.compile_or_warm_up_model = _then(worker.compile_or_warm_up_model, lambda: _begin(worker), _NOT_TESTED)

    WorkerBase.__init__ = init


def _then(original: Callable[..., Any], after: Callable[[], None], failed: str) -> Callable[..., Any]:
    """The engine's own method, and then ours, the first time: what ours raises is told, as ``failed``, and stays there."""
    ours = [after]

    def both(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        try:
            if ours:
                ours.pop()()
        except Exception:
            log.exception(failed)
        return result

    return both


def _install(worker: Any, wish: Wish) -> None:
    from sidecar.tap.vllm.install import install

    install(worker, wish)


def _begin(worker: Any) -> None:
    from sidecar.tap.vllm.install import begin
    from sidecar.tap.vllm.self_test import self_test

    begin(worker)
    self_test(worker)
