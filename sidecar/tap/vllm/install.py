"""A tap in one worker: from the model as it was loaded, before it is compiled, to a watch around its runner."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable
from typing import Any

from sidecar.tap.address import default_address
from sidecar.tap.client import TapClient
from sidecar.tap.faults import TapRefusedError
from sidecar.tap.switch import VARIABLE
from sidecar.tap.vllm import v1, v2
from sidecar.tap.vllm.identity import engine_id, identify
from sidecar.tap.vllm.known import refusal
from sidecar.tap.vllm.shelf import Shelf
from sidecar.tap.vllm.sites import NotHereError, Way, find_layers, find_socket, hook_socket
from sidecar.tap.vllm.watch import StepWatch
from sidecar.tap.wish import Wish
from sidecar.types import Site, Stack, TapPoint

log = logging.getLogger("stethoscope.tap")

_ASK_S = 10.0
_salt = ""


def install(worker: Any, wish: Wish) -> None:
    """Raises nothing that is no bug: what cannot be tapped is told in the log, and serving goes on."""
    _show_our_log()
    try:
        tap = _tap(worker, wish)
    except (TapRefusedError, NotHereError) as why:
        log.error("not_tapped: %s; vLLM goes on as it is", why)  # noqa: TRY400 - a limit, no bug
        return
    worker.stethoscope = tap


def _tap(worker: Any, wish: Wish) -> StepWatch | None:
    from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank

    runner, config = worker.model_runner, worker.vllm_config
    version = v2 if v2.drives(runner) else v1
    _check(runner, config, "v2" if version is v2 else "v1", wish)
    if get_tensor_model_parallel_rank() != 0:
        return None  # the residual stream is the same on every rank
    layers = find_layers(runner.get_model())
    stage = get_pp_group().rank_in_group
    client = TapClient(
        default_address(),
        identify(config, runner.get_model()),
        engine_id=engine_id(config, stage),
        limits=wish.limits,
    )
    client.start()
    try:
        points = _here(wish.points if wish.points is not None else _ask(client), layers, config)
        watch = _watch(client, runner, config, version is v1)
        ways = _plug(watch, runner, config, points, layers, wish)
        version.wrap(runner, watch)
    except BaseException:
        client.end_soon()
        raise
    _salt_compile_cache(f"{sorted((point.name, way.value) for point, way in ways.items())}")
    told = ",".join(f"{point.name}:{way.value}" for point, way in ways.items())
    log.info("tapped engine_id=%s tap_points=%s buffers=%d bytes", client.engine_id, told, watch.shelf.nbytes)
    return watch


def _check(runner: Any, config: Any, version: str, wish: Wish) -> None:
    why = refusal(version)
    if why:
        raise TapRefusedError(why)
    if wish.hooks and compiled(config):
        raise TapRefusedError(
            "nothing says that a compiled model runs plain hooks: serve with --enforce-eager, or leave out 'hooks:'"
        )
    if getattr(runner, "pcp_manager", None) is not None:
        raise TapRefusedError("prefill context parallelism deals the rows of a request to several ranks")
    if getattr(runner, "adaptive_verification", None) is not None:
        raise TapRefusedError("adaptive verification decides on the device which rows there are")


def compiled(config: Any) -> bool:
    from vllm.config import CompilationMode

    return bool(config.compilation_config.mode != CompilationMode.NONE)


def _ask(client: TapClient) -> tuple[TapPoint, ...]:
    """What the sidecar wants. The model is about to be compiled: what is not known by then is never seen."""
    pause, waited = threading.Event(), 0.0
    while not client.settings.tap_points:
        if waited >= _ASK_S:
            raise TapRefusedError(
                f"no sidecar said within {_ASK_S:g} s which tap points it wants; name them: {VARIABLE}=8,14"
            )
        pause.wait(0.05)
        waited += 0.05
    return client.settings.tap_points


def _here(points: Iterable[TapPoint], layers: dict[int, Any], config: Any) -> tuple[TapPoint, ...]:
    """Those of this stage, in order. Raises NotHereError for a block that the whole model has not."""
    depth = int(config.model_config.hf_text_config.num_hidden_layers)
    wanted = sorted(set(points))
    for point in wanted:
        if point.stack is not Stack.DECODER:
            raise NotHereError(f"{point.name}: of an encoder nothing is captured here")
        if point.layer >= depth:
            raise NotHereError(f"{point.name}: the model's blocks are 0 to {depth - 1}")
        if point.site is Site.ATTN_HEADS and config.parallel_config.tensor_parallel_size > 1:
            raise NotHereError(f"{point.name}: heads lie on several ranks under tensor parallelism")
    return tuple(point for point in wanted if point.layer in layers)


def _watch(client: TapClient, runner: Any, config: Any, first: bool) -> StepWatch:
    rows = int(getattr(runner, "max_num_tokens", 0) or config.scheduler_config.max_num_batched_tokens)
    ahead = bool(config.scheduler_config.async_scheduling)
    shelf = Shelf(rows, runner.device, config.model_config.dtype)
    return StepWatch(client, shelf, guesses_told=first and not ahead, ahead=ahead)


def _plug(
    watch: StepWatch, runner: Any, config: Any, points: tuple[TapPoint, ...], layers: dict[int, Any], wish: Wish
) -> dict[TapPoint, Way]:
    """Take out every tap point by the way that suits it."""
    auxiliary = not wish.hooks and _hands_out(runner, config)
    ways: dict[TapPoint, Way] = {}
    for point in points:
        if auxiliary and point.site is Site.RESID_POST:
            ways[point] = Way.AUXILIARY
        else:
            ways[point] = Way.HOOK if wish.hooks else Way.OPERATOR
            shelf = watch.shelf
            take = shelf.lay(point) if wish.hooks else shelf.place(point, _width(config, point))
            hook_socket(find_socket(layers, point), take)
    watch.points = tuple(ways)
    watch.auxiliary = tuple(point for point, way in ways.items() if way is Way.AUXILIARY)
    if watch.auxiliary:
        runner.get_model().set_aux_hidden_state_layers(tuple(point.layer + 1 for point in watch.auxiliary))
        runner.use_aux_hidden_state_outputs = True
    return ways


def _hands_out(runner: Any, config: Any) -> bool:
    """The model can hand out its residual stream, nobody else has asked it to, and no other stage would have to relay it."""
    from vllm.model_executor.models.interfaces import supports_eagle3

    alone = config.parallel_config.pipeline_parallel_size == 1 and not runner.use_aux_hidden_state_outputs
    return bool(alone and supports_eagle3(runner.get_model()))


def _width(config: Any, point: TapPoint) -> int:
    text = config.model_config.hf_text_config
    if point.site is not Site.ATTN_HEADS:
        return int(text.hidden_size)
    return int(text.num_attention_heads) * int(config.model_config.get_head_size())


def _salt_compile_cache(what: str) -> None:
    """A graph compiled without the tap must not be taken for one with it, nor the other way round."""
    global _salt  # noqa: PLW0603 - a process has one model
    from vllm.config import VllmConfig

    if not _salt:
        original = VllmConfig.compute_hash

        def compute_hash(config: Any, *args: Any, **kwargs: Any) -> str:
            plain = original(config, *args, **kwargs)
            return hashlib.sha256(f"{plain}|stethoscope|{_salt}".encode()).hexdigest()[: len(plain)]

        VllmConfig.compute_hash = compute_hash
    _salt = what


def _show_our_log() -> None:
    """VLLM shows what is logged below its own name, and nothing else."""
    ours, theirs = logging.getLogger("stethoscope"), logging.getLogger("vllm")
    if not ours.handlers:
        ours.handlers, ours.propagate = theirs.handlers, False
        ours.setLevel(logging.INFO)
