"""The forward passes of one model, seen from a pre-hook on the whole model: plain calls and ``generate``."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sidecar.tap.cost import Cost
from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.patches import Method, hold, owner_of, release
from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.step import RequestInfo
from sidecar.tap.transformers.context import ROWS
from sidecar.tap.transformers.generation import Batch, Generation, overhear, prompt_columns
from sidecar.tap.transformers.hooks import LayerHooks, eager
from sidecar.tap.transformers.layout import RowSpan, layout, past_columns
from sidecar.tap.transformers.stops import Stops
from sidecar.types import UnseenReason

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


class _Local(threading.local):
    batch: Batch | None = None
    generation: Generation | None = None
    suspended: bool = False


class ForwardWatch:
    """Counts and captures every forward pass of the model that no scheduler accounts for.

    Rows of a batch become requests at each fresh prefill: by the names in ``ROWS``, else under ids of their own. They end
    with their call of ``generate``, at the row's own end within it, or, in plain calls, at the next fresh prefill.
    """

    def __init__(
        self, recorder: Recorder, hooks: LayerHooks, faults: Faults, cost: Cost | None, stops: Stops | None = None
    ) -> None:
        self._recorder = recorder
        self._hooks = hooks
        self._faults = faults
        self._cost = cost
        self._stops = stops
        self._local = _Local()
        self._handles: list[RemovableHandle] = []
        self._model: weakref.ref[nn.Module] | None = None
        self._held: list[tuple[type, str]] = []

    def install(self, model: nn.Module) -> None:
        """Hook the model as a whole, and overhear its ``generate`` where its class has one."""
        self._model = weakref.ref(model)
        before, after = _model_hooks(self, self._cost)
        self._handles = [
            model.register_forward_pre_hook(eager(before), with_kwargs=True),
            model.register_forward_hook(eager(after)),
        ]
        _WATCHES[model] = self
        for name, make in _WRAPPERS.items():
            if callable(getattr(type(model), name, None)):
                owner = owner_of(type(model), name)
                hold(owner, name, make)
                self._held.append((owner, name))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for owner, name in self._held:
            release(owner, name)
        model = self.model
        if model is not None:
            _WATCHES.pop(model, None)
        self._handles, self._held = [], []

    @property
    def model(self) -> nn.Module | None:
        return None if self._model is None else self._model()

    @property
    def suspended(self) -> bool:
        return self._local.suspended or self._recorder.off

    def suspend(self, suspended: bool) -> None:
        """While a scheduler accounts for this thread's forward passes, they are none of ours."""
        self._local.suspended = suspended

    def end_batch(self) -> None:
        """The requests of plain calls on this thread have ended."""
        batch, self._local.batch = self._local.batch, None
        if batch is not None:
            self._recorder.finish(batch.requests)

    # one forward pass

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = columns = 0
        try:
            self._hooks.refresh()
            rows, columns = _shape(args, kwargs)
            self._recorder.begin(self._spans(rows, columns, kwargs), capture=self._hooks.asked)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("before_forward", error)
            self._recorder.count(rows * columns, UnseenReason.UNSUPPORTED)

    def after(self) -> None:
        try:
            self._recorder.end()
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("after_forward", error)

    def _spans(self, rows: int, columns: int, kwargs: dict[str, Any]) -> list[Span]:
        generation = self._local.generation
        if "cu_seq_lens_q" in kwargs:
            raise Unsupported("a packed batch that no scheduler accounts for")
        if generation is not None and generation.refusal:
            raise Unsupported(generation.refusal)
        past = past_columns(columns, kwargs)
        if past < 0:
            raise Unsupported("an attention mask shorter than the input")
        batch = self._local.batch
        fresh = batch is None or not _continues(batch, generation, rows, past)
        if batch is None or fresh:
            batch = self._fresh(rows, generation)
        if generation is not None and generation.news:
            self._end_rows(batch, generation)
        fed, batch.columns = batch.columns, past + columns
        prompt = 0 if generation is None else generation.prompt_columns
        decoding = generation is not None and not fresh and columns == 1 and past == fed >= prompt
        if decoding:  # every row got one more token: no tensor is read
            return [Span(one, row, one.next_position, 1) for row, one in enumerate(batch.requests) if not one.ended]
        table = layout(rows, columns, past, kwargs)
        if fresh or batch.columns <= prompt or (generation is None and columns > 1):
            _measure_prompts(batch, table, rest=max(0, prompt - batch.columns))
        return [
            Span(request, row * columns + span.column, span.first, span.length)
            for row, (request, span) in enumerate(zip(batch.requests, table, strict=True))
            if span.length and not request.ended
        ]

    def _fresh(self, rows: int, generation: Generation | None) -> Batch:
        if generation is None:
            self.end_batch()
        requests = [self._recorder.request(info, 0) for info in _names(rows)]
        self._local.batch = batch = Batch(requests)
        if generation is not None:
            generation.heed(requests)
        return batch

    def _end_rows(self, batch: Batch, generation: Generation) -> None:
        """Rows that ended with the step before: what is still fed to them is padding."""
        generation.news = False
        for request, done in zip(batch.requests, generation.done, strict=True):
            if done and not request.ended:
                request.ended = True
                generation.forget([request])
                self._recorder.finish([request])

    # one call of generate

    def generating(self, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``call``, with the forward passes of this thread meanwhile taken for its own."""
        outer = self._enter(args, kwargs)
        try:
            return call()
        finally:
            self._leave(outer)

    def overhear(self, criteria: Any, config: Any) -> Any:
        """The stopping criteria of the call that this thread is in, made audible."""
        generation = self._local.generation
        if generation is None:
            return criteria
        try:
            generation.prepare(config)
            return overhear(criteria, generation, self._faults, config)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            generation.refusal = "generation whose stopping criteria cannot be overheard"
            self._faults.note("stopping_criteria", error)
            return criteria

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Generation | None, Batch | None]:
        outer = (self._local.generation, self._local.batch)
        if outer[0] is None:
            self._guard(self.end_batch)
        generation = Generation(kwargs.get("assistant_model"), prompt_columns(args, kwargs), stops=self._stops)
        if len(self._held) < len(_WRAPPERS):
            generation.refusal = f"generation by a version of transformers without {' and '.join(_WRAPPERS)}"
        self._local.generation, self._local.batch = generation, None
        return outer

    def _leave(self, outer: tuple[Generation | None, Batch | None]) -> None:
        self._guard(self._recorder.abandon)
        batch, generation = self._local.batch, self._local.generation
        if batch is not None and generation is not None:
            self._guard(lambda: self._recorder.finish(one for one in batch.requests if not one.ended))
            self._guard(lambda: generation.forget(batch.requests))
        self._local.generation, self._local.batch = outer[0], outer[1] if outer[0] is not None else None

    def _guard(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("generate", error)


def _wrap_generate(original: Method) -> Method:
    def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        watch = _WATCHES.get(model)
        if watch is None:
            return original(model, *args, **kwargs)
        return watch.generating(lambda: original(model, *args, **kwargs), args, kwargs)

    return generate


def _wrap_criteria(original: Method) -> Method:
    def get_stopping_criteria(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        criteria = original(model, *args, **kwargs)
        watch = _WATCHES.get(model)
        if watch is None:
            return criteria
        return watch.overhear(criteria, kwargs["generation_config"] if "generation_config" in kwargs else args[0])

    return get_stopping_criteria


_WRAPPERS = {"generate": _wrap_generate, "_get_stopping_criteria": _wrap_criteria}
_WATCHES: weakref.WeakKeyDictionary[nn.Module, ForwardWatch] = weakref.WeakKeyDictionary()


def _model_hooks(watch: ForwardWatch, cost: Cost | None) -> tuple[Callable[..., None], Callable[..., None]]:
    """Plain functions: a bound method would be copied, with the whole tap, by a deep copy of the model.

    The copy carries these functions too, and is not what was tapped.
    """
    begin = watch.before if cost is None else cost.before(watch.before)
    end = watch.after if cost is None else cost.after(watch.after)

    def before(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is watch.model and not watch.suspended:
            begin(args, kwargs)

    def after(model: nn.Module, _args: Any, _output: Any) -> None:
        if model is watch.model and not watch.suspended:
            end()

    return before, after


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """[rows, columns] of the input, as ids or as embeddings."""
    for tokens in (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds")):
        if tokens is not None:
            return int(tokens.shape[0]), int(tokens.shape[1])
    raise Unsupported("a call without input_ids or inputs_embeds")


def _continues(batch: Batch, generation: Generation | None, rows: int, past: int) -> bool:
    """Within ``generate`` every pass belongs to the same rows; outside, only one on top of exactly what was fed so far."""
    if len(batch.requests) != rows:
        return False
    return generation is not None or 0 < past == batch.columns


def _measure_prompts(batch: Batch, table: list[RowSpan], rest: int) -> None:
    """What this pass and, in a prefill by chunks, the ``rest`` still to come say of each prompt's length."""
    for request, span in zip(batch.requests, table, strict=True):
        if span.length and request.prompt_tokens <= request.next_position:
            request.prompt_tokens = span.first + span.length + rest


def _names(rows: int) -> list[RequestInfo]:
    """The caller's names, each for as many rows as ``generate`` made of it; else fresh ones."""
    infos = ROWS.get()
    if infos and rows % len(infos) == 0:
        copies = rows // len(infos)
        return list(infos) if copies == 1 else [_child(info, k) for info in infos for k in range(copies)]
    call = uuid.uuid4().hex
    return [RequestInfo(f"gen-{call}-{row}") for row in range(rows)]


def _child(info: RequestInfo, number: int) -> RequestInfo:
    return replace(info, request_id=f"{info.request_id}/{number}")
