"""The forward passes of one model, seen from pre-hooks on each stack as a whole: plain calls, ``generate``, denoising loops."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sidecar.tap.cost import Cost
from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.patches import hold, owner_of, release
from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.transformers.batches import Batch, open_batch
from sidecar.tap.transformers.blocks import find_stacks
from sidecar.tap.transformers.context import ROWS
from sidecar.tap.transformers.generation import Generation, overhear, prompt_columns
from sidecar.tap.transformers.hooks import LayerHooks, eager
from sidecar.tap.transformers.inputs import Grid, encoder_grid, positions_made, rows_made, token_grid
from sidecar.tap.transformers.layout import layout, past_columns
from sidecar.tap.transformers.media import label_media, media_tokens
from sidecar.tap.transformers.stops import Stops
from sidecar.tap.transformers.timesteps import TIMESTEPS, timestep_spans
from sidecar.tap.transformers.wrappers import WATCHES, WRAPPERS
from sidecar.types import Medium, Phase, Stack, UnseenReason

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


class _Local(threading.local):
    batch: Batch | None = None
    generation: Generation | None = None
    suspended: bool = False
    untold: bool = False  # the pass has begun, and only what comes out of it tells how much it computes


class ForwardWatch:
    """Counts and captures every forward pass of the model that no scheduler accounts for.

    Rows of a batch become requests at each fresh prefill, or at each run of an encoder: by the names in ``ROWS``, else under
    ids of their own. They end with their call of ``generate``, at the row's own end within it, or, in plain calls, with the
    next ones. An encoder's passes and its decoder's are steps of their own.
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
        self._media: Mapping[int, Medium] = {}

    def install(self, model: nn.Module) -> None:
        """Hook each stack as a whole, and overhear the model's ``generate`` where its class has one."""
        self._model = weakref.ref(model)
        self._media = media_tokens(model.config)
        for stack, parts in find_stacks(model).items():
            before, after = _step_hooks(self, stack, parts.whole, self._cost)
            self._handles += [
                parts.whole.register_forward_pre_hook(eager(before), with_kwargs=True),
                parts.whole.register_forward_hook(eager(after)),
            ]
        WATCHES[model] = self
        for name, make in WRAPPERS.items():
            if callable(getattr(type(model), name, None)):
                owner = owner_of(type(model), name)
                hold(owner, name, make)
                self._held.append((owner, name))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for owner, name in self._held:
            release(owner, name)
        model = None if self._model is None else self._model()
        if model is not None:
            WATCHES.pop(model, None)
        self._handles, self._held = [], []

    @property
    def suspended(self) -> bool:
        return self._local.suspended or self._recorder.off

    def suspend(self, suspended: bool) -> None:
        """While a scheduler accounts for this thread's forward passes, they are none of ours."""
        self._local.suspended = suspended

    def end_batch(self) -> None:
        """The requests of this thread's batch have ended."""
        batch, self._local.batch = self._local.batch, None
        if batch is None:
            return
        self._recorder.finish(batch.open_requests())
        if self._stops is not None:
            for request in batch.open_requests():
                self._stops.forget(request.wire_id)

    # one forward pass

    def before(self, stack: Stack, whole: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens, self._local.untold = 0, False
        try:
            self._hooks.refresh()
            timesteps = TIMESTEPS.get()
            if timesteps is not None and stack is Stack.DECODER:
                tokens = len(ROWS.get())
                self._begin_timestep(timesteps.of(whole, tokens, args, kwargs))
                return
            grid = token_grid(args, kwargs) if stack is Stack.DECODER else encoder_grid(whole, args, kwargs)
            tokens = grid.rows * grid.columns
            spans = self._spans(grid, args, kwargs) if stack is Stack.DECODER else self._encoder_spans(grid, kwargs)
            self._recorder.begin(spans, capture=self._hooks.asks(stack), stack=stack)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("before_forward", error)
            self._local.untold = not tokens  # then it is counted by what comes out
            self._recorder.count(tokens, UnseenReason.UNSUPPORTED, stack)

    def after(self, stack: Stack, output: Any) -> None:
        untold, self._local.untold = self._local.untold, False
        try:
            if untold:
                made = rows_made(output) if TIMESTEPS.get() is not None else positions_made(output)
                self._recorder.count(made, UnseenReason.UNSUPPORTED, stack)
            else:
                self._recorder.end()
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("after_forward", error)

    def _begin_timestep(self, steps: list[int]) -> None:
        if not steps:
            raise Unsupported("timesteps of rows that nobody has named: open tap.requests around the loop")
        batch = self._local.batch
        if batch is None or len(batch.requests) != len(steps):
            batch = self._open(len(steps))
        spans = timestep_spans(batch, steps)
        self._recorder.begin(spans, capture=self._hooks.asks(Stack.DECODER), phase=Phase.TIMESTEP)
        step = self._recorder.open
        if step is not None:
            step.rows_computed = len(steps)

    def _encoder_spans(self, grid: Grid, kwargs: dict[str, Any]) -> list[Span]:
        generation = self._local.generation
        batch = self._open(grid.rows, 0 if generation is None else next(generation.encoder_runs))
        batch.encoded = True
        if generation is not None:
            generation.restart()
            generation.heed(batch.requests)
        table = layout(grid.rows, grid.columns, 0, kwargs if grid.padded else {})
        batch.measure_prompts(table)
        return batch.spans(table, grid.columns)

    def _spans(self, grid: Grid, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Span]:
        generation, columns = self._local.generation, grid.columns
        if "cu_seq_lens_q" in kwargs:
            raise Unsupported("a packed batch that no scheduler accounts for")
        if generation is not None and generation.refusal:
            raise Unsupported(generation.refusal)
        past = past_columns(columns, kwargs)
        if past < 0:
            raise Unsupported("an attention mask shorter than the input")
        batch = self._local.batch
        fresh = batch is None or not batch.continues(grid.rows, past, generating=generation is not None)
        if batch is None or fresh:
            batch = self._fresh(grid.rows, generation)
        if generation is not None and generation.news:
            self._end_rows(batch, generation)
        fed, batch.columns = batch.columns, past + columns
        prompt = 0 if generation is None else generation.prompt_columns
        decoding = generation is not None and not fresh and columns == 1 and past == fed >= prompt
        if decoding:  # every row got one more token: no tensor is read
            return [Span(one, row, one.next_position, 1) for row, one in enumerate(batch.requests) if not one.ended]
        table = layout(grid.rows, columns, past, kwargs)
        if fresh or batch.columns <= prompt or (generation is None and columns > 1):
            batch.measure_prompts(table, rest=max(0, prompt - batch.columns))
            label_media(self._media, batch, table, kwargs.get("input_ids", args[0] if args else None))
        return batch.spans(table, columns)

    def _fresh(self, rows: int, generation: Generation | None) -> Batch:
        batch = self._local.batch
        if batch is None or not batch.encoded:
            batch = self._open(rows)
        else:
            batch.pass_on(rows, self._recorder)
            if not batch.sources:
                return batch  # heeded since the encoder ran
            if generation is not None:
                generation.restart()
                generation.forget(batch.sources)
        if generation is not None:
            generation.heed(batch.requests)
        return batch

    def _open(self, rows: int, run: int = 0) -> Batch:
        self.end_batch()
        self._local.batch = batch = open_batch(self._recorder, rows, run)
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

    def generating(
        self, model: nn.Module, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """``call``, with the forward passes of this thread meanwhile taken for its own."""
        outer = self._enter(model, args, kwargs)
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

    def _enter(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Generation | None, Batch | None]:
        outer = (self._local.generation, self._local.batch)
        if outer[0] is None:
            self._guard(self.end_batch)
        generation = Generation(kwargs.get("assistant_model"), prompt_columns(model, args, kwargs), stops=self._stops)
        if outer[0] is not None:
            generation.encoder_runs = outer[0].encoder_runs
        if len(self._held) < len(WRAPPERS):
            generation.refusal = f"generation by a version of transformers without {' and '.join(WRAPPERS)}"
        self._local.generation, self._local.batch = generation, None
        return outer

    def _leave(self, outer: tuple[Generation | None, Batch | None]) -> None:
        self._guard(self._recorder.abandon)
        self._guard(self.end_batch)
        self._local.generation, self._local.batch = outer[0], outer[1] if outer[0] is not None else None

    def _guard(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("generate", error)


def _step_hooks(
    watch: ForwardWatch, stack: Stack, tapped: nn.Module, cost: Cost | None
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Plain functions: a bound method would be copied, with the whole tap, by a deep copy of the model.

    The copy carries these functions too, and is not what was tapped.
    """
    begin = watch.before if cost is None else cost.before(watch.before)
    end = watch.after if cost is None else cost.after(watch.after)
    ours = weakref.ref(tapped)

    def before(whole: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if whole is ours() and not watch.suspended:
            begin(stack, whole, args, kwargs)

    def after(whole: nn.Module, _args: Any, output: Any) -> None:
        if whole is ours() and not watch.suspended:
            end(stack, output)

    return before, after
