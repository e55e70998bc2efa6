"""SGLang's way in: it calls ``register`` in its processes, and nothing happens there unless ``STETHOSCOPE_TAP`` is set.

SGLang's own registry of hooks puts ours around three methods of the process that has the scheduler and the model: how the model is
made ready, how a step is computed, and how its result is taken.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from sidecar.tap.switch import is_on, switch_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.tap.wish import Wish

log = logging.getLogger("stethoscope.tap")

WORKER = "sglang.srt.managers.tp_worker.TpModelWorker"
SCHEDULER = "sglang.srt.managers.scheduler"
_done = False


def register() -> None:
    """Called by SGLang, in every process, maybe more than once. Raises nothing.

    Where no scheduler is loaded there is no model, and hooks would have it loaded: nothing is done there.
    """
    global _done  # noqa: PLW0603 - once a process, and a process is what SGLang has many of
    if _done or SCHEDULER not in sys.modules or not is_on():
        return
    _done = True
    switch_on(_register, "SGLang", log)


def _register(wish: Wish) -> None:
    from sidecar.tap.faults import TapRefusedError
    from sidecar.tap.sglang.known import refusal

    why = refusal()
    if why:
        raise TapRefusedError(why)
    _hook(wish)


def _hook(wish: Wish) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def installed(_result: Any, worker: Any, *_: Any, **__: Any) -> None:
        """Between the loading of the model and the capture of its graphs."""
        try:
            from sidecar.tap.sglang.install import install

            install(worker, wish)
        except Exception:
            log.exception("not_tapped: SGLang goes on as it is")

    HookRegistry.register(f"{WORKER}.init_attention_backends", installed, HookType.AFTER)
    HookRegistry.register(f"{WORKER}.forward_batch_generation", _step, HookType.AROUND)
    HookRegistry.register(f"{SCHEDULER}.Scheduler.process_batch_result", _processed, HookType.AFTER)


def _step(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    """One step of the model, and around it the watch, if this worker has one. The watch raises nothing."""
    watch = getattr(worker, "stethoscope", None)
    if watch is None:
        return original(worker, *args, **kwargs)
    pieces = watch.before(args[0] if args else kwargs.get("batch"))
    result = original(worker, *args, **kwargs)
    watch.after(pieces, result)
    return result


def _processed(_result: Any, scheduler: Any, batch: Any, *_: Any, **__: Any) -> None:
    """A step's tokens were given to its requests, some of which are over."""
    watch = getattr(scheduler.tp_worker, "stethoscope", None)
    if watch is not None:
        watch.processed(batch)
