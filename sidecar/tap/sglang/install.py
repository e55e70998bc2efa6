"""A tap in one worker: from what its model hands out to a watch around its steps."""

from __future__ import annotations

import logging
from typing import Any

from sidecar.tap.address import default_address
from sidecar.tap.client import TapClient
from sidecar.tap.faults import TapRefusedError
from sidecar.tap.sglang.identity import engine_id, identify
from sidecar.tap.sglang.watch import Watch
from sidecar.tap.switch import VARIABLE
from sidecar.tap.wish import Wish
from sidecar.types import Site, TapPoint

log = logging.getLogger("stethoscope.tap")

_FLAGS = "--enable-return-aux-hidden-states --speculative-algorithm EAGLE3 --return-aux-hidden-state-layer-ids"


def install(worker: Any, wish: Wish) -> None:
    """Raises nothing that is no bug: what cannot be tapped is told in the log, and serving goes on."""
    try:
        watch = _tap(worker, wish)
    except TapRefusedError as why:
        log.error("not_tapped: %s; SGLang goes on as it is", why)  # noqa: TRY400 - a limit, no bug
        return
    if watch is not None:
        worker.stethoscope = watch


def _tap(worker: Any, wish: Wish) -> Watch | None:
    from sglang.srt.runtime_context import get_parallel

    if worker.is_draft_worker:
        return None
    _check(worker, wish)
    parallel = get_parallel()
    if parallel.tp_rank != 0:
        return None  # the residual stream is the same on every rank
    handed = handed_out(worker.model_runner.model)
    tapped = _chosen(wish, handed)
    identity = identify(worker)
    client = TapClient(
        default_address(),
        identity,
        engine_id=engine_id(parallel.dp_rank),
        limits=wish.limits,
    )
    client.start()
    log.info("tapped engine_id=%s tap_points=%s", client.engine_id, ",".join(point.name for point in sorted(tapped)))
    return Watch(client, handed, tapped, identity.width)


def _check(worker: Any, wish: Wish) -> None:
    """Raises TapRefusedError for what deals the rows or the layers of a request to others, or computes them some other way."""
    from sglang.srt.runtime_context import get_disagg, get_parallel

    parallel, disagg = get_parallel(), get_disagg()
    limits = {
        "plain hooks never run in a graph: leave out 'hooks:'": wish.hooks,
        "pipeline stages are not tapped": parallel.pp_size > 1,
        "attention under data parallelism deals requests to the ranks": parallel.enable_dp_attention,
        "context parallelism deals the rows of a request to the ranks": parallel.attn_cp_size > 1,
        "prompts are computed in another process": disagg.disaggregation_mode != "null",
        "prompts are computed layer by layer (pdmux)": disagg.enable_pdmux,
        "a diffusion language model has no positions in order": worker.is_dllm(),
    }
    for why, met in limits.items():
        if met:
            raise TapRefusedError(why)


def handed_out(model: Any) -> tuple[TapPoint, ...]:
    """The residual streams that the model was told to hand out, in the order in which it lays them side by side.

    SGLang takes them where a block begins, so they are the output of the block before. Empty if it was told nothing.
    Raises TapRefusedError if what comes before the first block is among them.
    """
    inner = getattr(model, "model", None)
    language = getattr(model, "language_model", None)
    for holder in (inner, language, getattr(language, "model", None)):
        begins = getattr(holder, "layers_to_capture", None)
        if begins and min(begins) < 1:
            raise TapRefusedError("the model hands out its embeddings, which are no block's output")
        if begins:
            return tuple(TapPoint(block - 1) for block in sorted(begins))
    return ()


def _chosen(wish: Wish, handed: tuple[TapPoint, ...]) -> frozenset[TapPoint]:
    """Raises TapRefusedError, with the flags to serve with, if the model does not hand out what is wished for."""
    if wish.points is None:
        if not handed:
            raise TapRefusedError(f"the model hands out no layer; serve with {_FLAGS} and the layers, for example 8 14")
        return frozenset(handed)
    other = [point.name for point in wish.points if point.site is not Site.RESID_POST]
    if other:
        raise TapRefusedError(f"{VARIABLE}: {', '.join(other)}: SGLang hands out the residual stream alone")
    if not set(wish.points) <= set(handed):
        layers = " ".join(str(point.layer) for point in sorted(wish.points))
        raise TapRefusedError(f"the model does not hand out these layers; serve with {_FLAGS} {layers}")
    return frozenset(wish.points)
