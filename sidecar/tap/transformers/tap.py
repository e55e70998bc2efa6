"""A tapped model: what holds the parts together, from ``attach`` to ``detach``."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sidecar.tap.client import TapClient
from sidecar.tap.cost import Cost, TapCost
from sidecar.tap.faults import Faults
from sidecar.tap.patches import MissingNameError
from sidecar.tap.recorder import Recorder
from sidecar.tap.sites import NoPartError
from sidecar.tap.step import RequestInfo
from sidecar.tap.transformers.batching import BatchWatch
from sidecar.tap.transformers.blocks import find_stacks
from sidecar.tap.transformers.context import ROWS
from sidecar.tap.transformers.forward import ForwardWatch
from sidecar.tap.transformers.hooks import LayerHooks, socket_at
from sidecar.tap.transformers.self_test import self_test
from sidecar.tap.transformers.stops import Stops
from sidecar.tap.transformers.timesteps import TIMESTEPS, Timesteps
from sidecar.tap.trial import Findings
from sidecar.types import SamplingPolicy, TapPoint

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("stethoscope.tap")
_TAPPED: weakref.WeakKeyDictionary[nn.Module, Tap] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


class Tap:
    """Made by ``attach``. Holds no reference to the model: a model that is dropped takes its tap with it."""

    def __init__(
        self,
        model: nn.Module,
        client: TapClient,
        *,
        layers: Sequence[int | str] | None,
        sampling: SamplingPolicy | None,
        measure_cost: bool,
        owns_client: bool,
        stop_on_block: bool = False,
    ) -> None:
        points = None if layers is None else _points(model, layers)
        self.client = client
        self._cost = Cost() if measure_cost else None
        self._faults = Faults()
        self._recorder = Recorder(client, sampling)
        self._hooks = LayerHooks(model, self._recorder, client, self._faults, points=points, cost=self._cost)
        self._stops = Stops() if stop_on_block else None
        self._forward = ForwardWatch(self._recorder, self._hooks, self._faults, self._cost, self._stops)
        self._batching = BatchWatch(self._recorder, self._hooks, self._forward, self._faults, self._cost, self._stops)
        self._model = weakref.ref(model)
        self._self_test: Findings = {}
        self._owns_client = owns_client
        self._end = weakref.finalize(model, client.end_soon) if owns_client else None
        if self._end is not None:
            self._end.atexit = False  # at exit the client says goodbye by itself

    def install(self) -> None:
        """Try the model, then hook it. Raises ValueError if it is tapped already."""
        model = self._model()
        assert model is not None
        with _LOCK:
            if model in _TAPPED:
                raise ValueError("the model is tapped already")
            _TAPPED[model] = self
        try:
            self._self_test = self_test(model)
            self._hooks.heed(self._self_test)
            self._forward.install(model)
            self._install_batching(model)
            if self._stops is not None:
                self.client.on_verdict(self._stops.verdict)
        except BaseException:
            self.detach(0.0)
            raise

    def _install_batching(self, model: nn.Module) -> None:
        try:
            self._batching.install(model)
        except MissingNameError as missing:
            log.error("continuous_batching_not_tapped missing=%s: its tokens count as unsupported", missing)  # noqa: TRY400 - no bug of ours

    def detach(self, timeout_s: float = 2.0) -> None:
        """Leave the model as it was found, deliver what waits and say goodbye. Twice is fine."""
        model = self._model()
        if model is not None:
            _TAPPED.pop(model, None)
        self._forward.end_batch()
        self._recorder.close()
        self._batching.remove()
        self._forward.remove()
        self._hooks.remove()
        if self._end is not None:
            self._end.detach()
        if self._owns_client:
            self.client.stop(timeout_s)

    @contextmanager
    def requests(
        self,
        ids: Sequence[str],
        traceparents: Sequence[str] | None = None,
        *,
        sessions: Sequence[str] | None = None,
        route: str = "",
        tenant: str = "",
        language: str = "",
        canary: bool = False,
    ) -> Iterator[None]:
        """Name the rows of the batches run inside, in order. They end with the block. sessions: a keyed hash of each one's.

        With several sequences per prompt (beams, num_return_sequences) each gets its prompt's name and ``/k``; in beam
        search k is the place in the beam, which hypotheses move between.
        """
        nothing = [""] * len(ids)
        parents, hashes = (nothing if one is None else one for one in (traceparents, sessions))
        if not len(parents) == len(hashes) == len(ids):
            raise ValueError(f"{len(ids)} ids but {len(parents)} traceparents and {len(hashes)} sessions")
        token = ROWS.set(
            tuple(
                RequestInfo(name, parent, route, tenant, language, session_id_hash=session, canary=canary)
                for name, parent, session in zip(ids, parents, hashes, strict=True)
            )
        )
        try:
            yield
        finally:
            ROWS.reset(token)
            self._forward.end_batch()

    @contextmanager
    def timesteps(self, at: int | str = "timestep", *, scale: float = 1.0) -> Iterator[None]:
        """Calls of the model inside are steps of a denoising loop, within ``requests``, which name the rows of its batch.

        at: the timestep of every call, or the name of the model's argument that has it, one number or one a row, which times
        ``scale`` is rounded to the position (flows count from 0 to 1: scale them by 1000). What is captured of a call is one
        row a request: the mean of its states [N, D]. Of several calls at one timestep the first is.
        """
        token = TIMESTEPS.set(Timesteps(at, scale))
        try:
            yield
        finally:
            TIMESTEPS.reset(token)

    @property
    def points(self) -> tuple[TapPoint, ...]:
        """Where rows are captured now: known with the first step after the sidecar's wish."""
        return self._hooks.points

    @property
    def self_test(self) -> Findings:
        """What made-up tokens showed of every tap point that the model has, before the first request."""
        return self._self_test

    @property
    def stopped(self) -> int:
        """Requests whose generation was ended by a BLOCK; 0 if attached without stop_on_block."""
        return 0 if self._stops is None else self._stops.stopped

    def claim_stopped(self, wire_id: str) -> bool:
        """Whether this request was among them; True once, for the server that answers it."""
        return self._stops is not None and self._stops.claim(wire_id)

    def errors(self) -> dict[str, int]:
        """What went wrong inside the tap, and what it could not capture, by kind."""
        failed = self.client.errors
        return self._faults.counts() | ({"client": failed} if failed else {})

    def cost(self) -> TapCost:
        """Raises RuntimeError if the tap was attached without measure_cost."""
        if self._cost is None:
            raise RuntimeError("attach with measure_cost=True to measure the tap's cost")
        return self._cost.read()


def _points(model: nn.Module, layers: Sequence[int | str]) -> list[TapPoint]:
    """Raises ValueError for what the model has not."""
    stacks = find_stacks(model)
    points = [TapPoint(one) if isinstance(one, int) else TapPoint.parse(one) for one in layers]
    for point in points:
        try:
            socket_at(stacks, point)
        except NoPartError as missing:
            raise ValueError(f"{point.name}: {missing}") from None
    return points


def tap_of(model: nn.Module) -> Tap | None:
    """The tap on this model, if it has one."""
    return _TAPPED.get(model)


def all_taps() -> list[Tap]:
    """Every tap of this process."""
    return list(_TAPPED.values())
