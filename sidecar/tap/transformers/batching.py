"""Continuous batching: whose row is whose is told by the engine's own scheduler, before the forward pass.

Read in transformers 5.23: ``ModelRunner.compute_batch`` runs one step whose rows are those of ``requests_in_batch``, one after
the other, and padding after them; ``position_offset`` of each is already moved behind the step.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sidecar.tap.cost import Cost
from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.patches import Method, MissingNameError, hold, owner_of, release
from sidecar.tap.recorder import AnySpan, Recorder
from sidecar.tap.step import Request, RequestInfo
from sidecar.tap.transformers.cancel import Cancels
from sidecar.tap.transformers.context import CALLER
from sidecar.tap.transformers.forward import ForwardWatch
from sidecar.tap.transformers.hooks import LayerHooks
from sidecar.tap.transformers.stops import Stops
from sidecar.types import Stack, UnseenReason

if TYPE_CHECKING:
    from torch import nn

_MODULES = "transformers.generation.continuous_batching"
_REQUESTS = 65536  # followed at once; an engine has thousands at most


class BatchWatch:
    """Follows one model's requests through the scheduler. Owned by the thread that runs the engine's loop."""

    def __init__(
        self,
        recorder: Recorder,
        hooks: LayerHooks,
        forward: ForwardWatch,
        faults: Faults,
        cost: Cost | None,
        stops: Stops | None = None,
    ) -> None:
        self._recorder = recorder
        self._hooks = hooks
        self.forward = forward
        self.faults = faults
        self.cancels = None if stops is None else Cancels(stops, faults)
        self._requests: OrderedDict[str, Request] = OrderedDict()
        self._infos: OrderedDict[str, RequestInfo] = OrderedDict()
        self._ended: dict[str, None] = {}
        self._held: list[tuple[type, str]] = []
        self._model: weakref.ref[nn.Module] | None = None
        self.begin = self._begin if cost is None else cost.before(self._begin)
        self.end = self._end if cost is None else cost.after(self._end)

    def install(self, model: nn.Module) -> None:
        """Raises MissingNameError, and wraps nothing, if this version of transformers has other names."""
        wanted = [(owner_of(_class(module, cls), name), name, make) for module, cls, name, make in _WRAPPERS]
        self._model = weakref.ref(model)
        _WATCHES[model] = self
        for owner, name, make in wanted:
            hold(owner, name, make)
            self._held.append((owner, name))

    def remove(self) -> None:
        for owner, name in self._held:
            release(owner, name)
        model = self._model() if self._model is not None else None
        if model is not None:
            _WATCHES.pop(model, None)
        self._held = []

    def announce(self, info: RequestInfo) -> None:
        """What the caller of ``add_request`` told about it. Called on the caller's thread."""
        self._infos[info.request_id] = info
        self._bound(
            self._infos, "more requests wait than are followed: what their callers told of the oldest is forgotten"
        )

    def _begin(self, runner: Any) -> None:
        self.forward.suspend(True)
        try:
            self._hooks.refresh()
            _BY_CACHE[runner.cache] = self  # the scheduler of the same cache works for this model
            io = _host_side(runner.inputs_and_outputs)
            if _replays(runner):
                self.faults.note("graph", Unsupported("steps replayed as a graph: serve with --no-cb-use-cuda-graph"))
                tokens = sum(future.query_length for future in io.requests_in_batch)
                self._recorder.count(tokens, UnseenReason.GRAPH_REPLAY)
            else:
                self._recorder.begin(self._spans(io), capture=self._hooks.asks(Stack.DECODER))
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self.faults.note("before_batch", error)
            self._recorder.count(_tokens(runner), UnseenReason.UNSUPPORTED)

    def _end(self, *, failed: bool = False) -> None:
        self.forward.suspend(False)
        try:
            if failed:
                self._recorder.abandon()
            else:
                self._recorder.end()
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self.faults.note("after_batch", error)

    def _spans(self, io: Any) -> Iterator[AnySpan]:
        row = 0
        for future in io.requests_in_batch:
            state, count = future.state, future.query_length
            request = self._requests.get(state.request_id) or self._open(state)
            yield request, row, state.position_offset - count, count
            row += count

    def _open(self, state: Any) -> Request:
        info = self._infos.pop(state.request_id, None) or RequestInfo(state.request_id)
        # After a soft reset the generated tokens stand among the initial ones; the prompt is what it was.
        request = self._recorder.request(info, getattr(state, "_true_initial_tokens", 0) or len(state.initial_tokens))
        self._requests[state.request_id] = request
        if self.cancels is not None:
            self.cancels.heed(request, state.request_id)
        self._bound(self._requests, "more requests run than are followed: the end of the oldest is not told")
        return request

    def _bound(self, followed: OrderedDict[str, Any], what: str) -> None:
        if len(followed) > _REQUESTS:
            followed.popitem(last=False)
            self.faults.note("requests", Unsupported(what))

    def ended(self, request_id: str) -> None:
        """The scheduler let go of it; told to the sidecar at ``flush``, if it is not put back in the queue before."""
        if request_id in self._requests:
            self._ended[request_id] = None

    def dropped(self, state: Any) -> None:
        """The scheduler let go of it because it was cancelled."""
        if self.cancels is not None:
            self.cancels.dropped(state)
        self.ended(state.request_id)

    def put_back(self, state: Any) -> None:
        """A request offloaded or reset for want of memory goes on later; a new one of the same name is a new one."""
        if getattr(state, "is_cpu_offloaded", False) or getattr(state, "_true_initial_tokens", 0):
            self._ended.pop(state.request_id, None)

    def flush(self) -> None:
        """Between two steps: the requests that ended are over."""
        names, self._ended = self._ended, {}
        ended = {name: self._requests.pop(name) for name in names if name in self._requests}
        if self.cancels is not None:
            for name, request in ended.items():
                self.cancels.forget(request, name)
        self._recorder.finish(ended.values())


_WATCHES: weakref.WeakKeyDictionary[nn.Module, BatchWatch] = weakref.WeakKeyDictionary()
_BY_CACHE: weakref.WeakKeyDictionary[object, BatchWatch] = weakref.WeakKeyDictionary()


def _watch_for(owner: Any) -> BatchWatch | None:
    """Whose scheduler or processor this is; None if it is nobody's that we know."""
    try:
        return _BY_CACHE.get(owner.cache)
    except (AttributeError, TypeError):
        return None


def _quietly(watch: BatchWatch | None, note: Callable[..., None], *args: Any) -> None:
    """Tell the watch, if there is one; whatever goes wrong there is counted and stays there."""
    if watch is None:
        return
    try:
        note(watch, *args)
    except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
        watch.faults.note("scheduler", error)


def _host_side(io: Any) -> Any:
    """On a GPU the engine keeps two pairs of buffers; the schedule stands on the host's side of the current one."""
    return io.io_pairs[io.current_pair].host_io if hasattr(io, "io_pairs") else io


def _replays(runner: Any) -> bool:
    decode = runner.inputs_and_outputs.use_block_table
    return bool(runner.use_cuda_graph_decode if decode else runner.use_cuda_graph_varlen)


def _tokens(runner: Any) -> int:
    try:
        return sum(future.query_length for future in _host_side(runner.inputs_and_outputs).requests_in_batch)
    except Exception:  # noqa: BLE001 - counted by the caller already; there is nothing left to count with
        return 0


def _class(module: str, name: str) -> type:
    from importlib import import_module

    try:
        found = getattr(import_module(f"{_MODULES}.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise MissingNameError(f"{_MODULES}.{module}.{name}") from error
    if not isinstance(found, type):
        raise MissingNameError(f"{_MODULES}.{module}.{name}")
    return found


def _wrap_compute_batch(original: Method) -> Method:
    def compute_batch(runner: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        watch = _WATCHES.get(model)
        if watch is None or watch.forward.suspended:  # a warm-up, or a child of fork
            return original(runner, model, *args, **kwargs)
        watch.begin(runner)
        failed = True
        try:
            result = original(runner, model, *args, **kwargs)
            failed = False
            return result
        finally:
            watch.end(failed=failed)

    return compute_batch


def _wrap_warmup(original: Method) -> Method:
    """Warm-up runs made-up requests through the model: nobody's tokens."""

    def warmup(runner: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        watch = _WATCHES.get(model)
        if watch is None:
            return original(runner, model, *args, **kwargs)
        watch.forward.suspend(True)
        try:
            return original(runner, model, *args, **kwargs)
        finally:
            watch.forward.suspend(False)

    return warmup


def _wrap_finish_request(original: Method) -> Method:
    def finish_request(scheduler: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        _quietly(_watch_for(scheduler), BatchWatch.ended, request_id)
        return original(scheduler, request_id, *args, **kwargs)

    return finish_request


def _wrap_add_waiting(original: Method) -> Method:
    def add_waiting_request(scheduler: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        _quietly(_watch_for(scheduler), BatchWatch.put_back, state)
        return original(scheduler, state, *args, **kwargs)

    return add_waiting_request


def _wrap_clear_cancelled(original: Method) -> Method:
    def clear_cancelled_requests(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        cancelled = original(scheduler, *args, **kwargs)
        watch = _watch_for(scheduler)
        for state in cancelled or ():
            _quietly(watch, BatchWatch.dropped, state)
        _quietly(watch, BatchWatch.flush)
        return cancelled

    return clear_cancelled_requests


def _wrap_fail_all(original: Method) -> Method:
    def fail_all_requests(processor: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(processor, *args, **kwargs)
        finally:
            _quietly(_watch_for(processor), BatchWatch.flush)

    return fail_all_requests


def _wrap_add_request(original: Method) -> Method:
    def add_request(manager: Any, input_ids: Any, request_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        model, caller = getattr(manager, "model", None), CALLER.get()
        watch = None if model is None else _WATCHES.get(model)
        if watch is not None and watch.cancels is not None:
            watch.cancels.managed(manager)
        told = caller.told
        if told and request_id is not None:
            _quietly(watch, BatchWatch.announce, caller.info(request_id))
        given = original(manager, input_ids, request_id, *args, **kwargs)
        if told and request_id is None and given is not None:
            _quietly(watch, BatchWatch.announce, caller.info(given))
        return given

    return add_request


_WRAPPERS = (
    ("model_runner", "ModelRunner", "compute_batch", _wrap_compute_batch),
    ("model_runner", "ModelRunner", "warmup", _wrap_warmup),
    ("scheduler", "Scheduler", "finish_request", _wrap_finish_request),
    ("scheduler", "Scheduler", "add_waiting_request", _wrap_add_waiting),
    ("scheduler", "Scheduler", "clear_cancelled_requests", _wrap_clear_cancelled),
    ("continuous_api", "ContinuousBatchProcessor", "fail_all_requests", _wrap_fail_all),
    ("continuous_api", "ContinuousBatchingManager", "add_request", _wrap_add_request),
)
