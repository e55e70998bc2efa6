"""A tap in one worker: into the model when it is loaded, before it is compiled; around its runner when that is warm."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

from sidecar.tap.address import default_address
from sidecar.tap.client import TapClient
from sidecar.tap.faults import TapRefusedError
from sidecar.tap.vllm import v1, v2
from sidecar.tap.vllm.choice import ask, check, here
from sidecar.tap.vllm.identity import engine_id, identify
from sidecar.tap.vllm.ranks import Ranks, agree
from sidecar.tap.vllm.shelf import Shelf
from sidecar.tap.vllm.sites import NotHereError, Way, find_layers, find_socket, hook_socket
from sidecar.tap.vllm.watch import StepWatch
from sidecar.tap.wish import Wish
from sidecar.types import Site, TapPoint

log = logging.getLogger("stethoscope.tap")

_salt = ""


def install(worker: Any, wish: Wish) -> None:
    """Raises nothing that is no bug: what cannot be tapped is told in the log, and serving goes on."""
    _show_our_log()
    try:
        tap = _Installation(worker, wish).run()
    except (TapRefusedError, NotHereError) as why:
        log.error("not_tapped: %s; vLLM goes on as it is", why)  # noqa: TRY400 - a limit, no bug
        return
    worker.stethoscope = tap


def begin(worker: Any) -> None:
    """From here on steps are watched: those before warm the engine up, by made-up requests in V2, and are nobody's."""
    watch: StepWatch | None = getattr(worker, "stethoscope", None)
    if watch is not None:
        runner = worker.model_runner
        (v2 if v2.drives(runner) else v1).wrap(runner, watch)


class _Installation:
    """In every tensor parallel rank, at once. The residual stream is the same in all of them: the first one sends it.

    The others change their graphs as the first does, and keep nothing: a compiler fuses operators that wait for all ranks
    according to what stands around them.
    """

    def __init__(self, worker: Any, wish: Wish) -> None:
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        self._runner, self._config, self._wish = worker.model_runner, worker.vllm_config, wish
        self._ranks, self._stage = Ranks.of(get_tp_group()), get_pp_group()
        self._first_runner = not v2.drives(self._runner)
        self._layers: dict[int, Any] = {}
        self._client: TapClient | None = None

    def run(self) -> StepWatch | None:
        """None in a rank that keeps nothing."""
        try:
            return self._tapped(agree(self._ranks, self._choose))
        except BaseException:
            if self._client is not None:
                self._client.end_soon()
            raise

    def _choose(self) -> Iterable[TapPoint]:
        """Whatever may speak against the tap speaks here: what comes behind it is done in every rank or in none."""
        check(self._runner, self._config, "v1" if self._first_runner else "v2", self._wish)
        self._layers = find_layers(self._runner.get_model())
        points = self._wish.points or ()
        if self._ranks.rank == 0:
            self._client = self._connected()
            points = ask(self._client) if self._wish.points is None else points
        points = here(points, self._layers, self._config)
        for point in points:
            find_socket(self._layers, point)
        return points

    def _connected(self) -> TapClient:
        stage = int(self._stage.rank_in_group)
        client = TapClient(
            default_address(stage),
            identify(self._config, self._runner.get_model()),
            engine_id=engine_id(self._config, stage),
            limits=self._wish.limits,
        )
        client.start()
        return client

    def _tapped(self, points: tuple[TapPoint, ...]) -> StepWatch | None:
        ways = self._ways(points)
        shelf = self._plug(ways)
        told = ",".join(f"{point.name}:{way.value}" for point, way in ways.items())
        _salt_compile_cache(f"{sorted((point.name, way.value) for point, way in ways.items())}")
        if self._client is None:
            log.info("rank %d has the graph of rank 0, which is tapped: tap_points=%s", self._ranks.rank, told)
            return None
        watch = self._watch(self._client, shelf, ways)
        log.info("tapped engine_id=%s tap_points=%s buffers=%d bytes", self._client.engine_id, told, shelf.nbytes)
        return watch

    def _ways(self, points: tuple[TapPoint, ...]) -> dict[TapPoint, Way]:
        """The way that suits each tap point."""
        if self._wish.hooks:
            return dict.fromkeys(points, Way.HOOK)
        auxiliary = self._hands_out()
        return {
            point: Way.AUXILIARY if auxiliary and point.site is Site.RESID_POST else Way.OPERATOR for point in points
        }

    def _hands_out(self) -> bool:
        """The model can hand out its residual stream, nobody else has asked it to, and no other stage would have to relay it."""
        from vllm.model_executor.models.interfaces import supports_eagle3

        alone = self._stage.world_size == 1 and not self._runner.use_aux_hidden_state_outputs
        return bool(alone and supports_eagle3(self._runner.get_model()))

    def _plug(self, ways: dict[TapPoint, Way]) -> Shelf:
        runner, config = self._runner, self._config
        rows = int(getattr(runner, "max_num_tokens", 0) or config.scheduler_config.max_num_batched_tokens)
        widths = {point: _width(config, point) for point, way in ways.items() if way is Way.OPERATOR}
        shelf = Shelf(rows, widths, runner.device, config.model_config.dtype, deaf=self._client is None)
        for point, way in ways.items():
            if way is not Way.AUXILIARY:
                take = shelf.lay(point) if way is Way.HOOK else shelf.place(point)
                hook_socket(find_socket(self._layers, point), take)
        auxiliary = [point for point, way in ways.items() if way is Way.AUXILIARY]
        if auxiliary:
            runner.get_model().set_aux_hidden_state_layers(tuple(point.layer + 1 for point in auxiliary))
            runner.use_aux_hidden_state_outputs = True
        return shelf

    def _watch(self, client: TapClient, shelf: Shelf, ways: dict[TapPoint, Way]) -> StepWatch:
        ahead = bool(self._config.scheduler_config.async_scheduling)
        # Tokens are sampled in the last stage: the others do not learn which guesses were right.
        told = self._first_runner and not ahead and bool(self._stage.is_last_rank)
        watch = StepWatch(client, shelf, guesses_told=told, ahead=ahead)
        watch.points = tuple(ways)
        watch.auxiliary = tuple(point for point, way in ways.items() if way is Way.AUXILIARY)
        return watch


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
