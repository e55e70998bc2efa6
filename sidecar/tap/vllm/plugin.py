"""vLLM's way in: it calls ``register`` in every one of its processes, and nothing happens there unless ``STETHOSCOPE_TAP`` is set.

What is wrapped is wrapped once a process: how a worker is made, and what the scheduler says of a new request. The tap itself
starts in the worker, when its model is loaded.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("vllm.stethoscope")  # vLLM shows what is logged below its own name
_done = False


def register() -> None:
    """Called by vLLM, in every process, maybe more than once. Raises nothing."""
    global _done  # noqa: PLW0603 - once a process, and a process is what vLLM has many of
    wanted = os.environ.get("STETHOSCOPE_TAP", "")
    if _done or wanted.strip() in ("", "0", "off"):
        return
    _done = True
    try:
        _register(wanted)
    except Exception:
        log.exception("not_tapped: vLLM goes on as it is")


def _register(wanted: str) -> None:
    from sidecar.tap.vllm.known import refusal
    from sidecar.tap.wish import parse_wish

    try:
        wish = parse_wish(wanted)
    except ValueError as error:
        log.error("not_tapped: %s; vLLM goes on as it is", error)  # noqa: TRY400 - a setting, no bug
        return
    why = refusal()
    if why:
        log.error("not_tapped: %s; vLLM goes on as it is", why)
        return
    _wrap_requests()
    _wrap_workers(wish)


def _wrap_requests() -> None:
    """In the engine's process: the caller's trace goes along to the worker, which is not told it otherwise."""
    from vllm.v1.core.sched.output import NewRequestData

    original: Any = NewRequestData.from_request.__func__

    def from_request(cls: type, request: Any, *args: Any, **kwargs: Any) -> Any:
        told = original(cls, request, *args, **kwargs)
        headers = getattr(request, "trace_headers", None)
        if headers:
            told.trace_headers = dict(headers)
        return told

    NewRequestData.from_request = classmethod(from_request)


def _wrap_workers(wish: Any) -> None:
    """In the worker's process: the tap goes on between the loading of the model and its compilation.

    A worker's process calls us when it is about to make its worker: whatever wraps an earlier step is too late.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    original = WorkerBase.__init__

    def init(worker: Any, *args: Any, **kwargs: Any) -> None:
        original(worker, *args, **kwargs)
        worker.load_model = _then(worker.load_model, lambda: _install(worker, wish))
        worker.compile_or_warm_up_model = _then(worker.compile_or_warm_up_model, lambda: _self_test(worker))

    WorkerBase.__init__ = init


def _then(original: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    """The engine's own method, and then ours: what ours raises is told and stays there."""

    def both(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        try:
            after()
        except Exception:
            log.exception("not_tapped: vLLM goes on as it is")
        return result

    return both


def _install(worker: Any, wish: Any) -> None:
    from sidecar.tap.vllm.install import install

    install(worker, wish)


def _self_test(worker: Any) -> None:
    from sidecar.tap.vllm.self_test import self_test

    self_test(worker)
