"""Hooks at the chosen sites: they keep the chosen rows of the step that their thread is in, or the plan's readings."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sidecar.tap.client import TapClient
from sidecar.tap.cost import Cost
from sidecar.tap.faults import Faults
from sidecar.tap.recorder import Recorder
from sidecar.tap.sites import NoPartError, Socket, find_socket
from sidecar.tap.tensors.keeper import Keeper
from sidecar.tap.transformers.blocks import StackParts, find_stacks
from sidecar.tap.transformers.timesteps import averaged
from sidecar.tap.trial import Finding, Findings, Outcome
from sidecar.types import Stack, TapPoint

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

log = logging.getLogger("stethoscope.tap")


def eager(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Run outside a compiled graph, for 1 us a call: inside it a hook would run once, at compile time, and then never again."""
    import torch

    disabled: Callable[..., Any] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # torch leaves it so
    return disabled


class LayerHooks:
    """The hooks that are in force on one model. Hooks are changed only by ``refresh``, between two steps.

    The closures hold no reference to the model, and no method of this class is a hook: a deep copy of the model stays
    possible, and the model can be freed.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        client: TapClient,
        faults: Faults,
        *,
        points: Sequence[TapPoint] | None,
        cost: Cost | None,
    ) -> None:
        self._model = weakref.ref(model)
        self._client = client
        self._recorder = recorder
        self._faults = faults
        self._keeper = Keeper(recorder, faults)
        self._cost = cost
        self._fixed = None if points is None else tuple(sorted(set(points)))
        self._asked: tuple[TapPoint, ...] | None = None
        self._handles: list[RemovableHandle] = []
        self._lock = threading.Lock()
        self._findings: Findings = {}
        self.points: tuple[TapPoint, ...] = ()

    def heed(self, findings: Findings) -> None:
        """What a self-test found. Called before the first ``refresh``; what was refused there is not hooked."""
        self._findings = findings

    def refresh(self) -> None:
        """Follow the sidecar's wish, or the fixed points. Costs one comparison if nothing changed."""
        asked = self._client.settings.tap_points if self._fixed is None else self._fixed
        if asked is not self._asked:
            with self._lock:
                self._install(asked)

    def asks(self, stack: Stack) -> bool:
        """Somebody wants its rows, whether or not they can be had: what is asked for and not captured must show as missing."""
        return any(point.stack is stack for point in self._asked or ())

    def remove(self) -> None:
        with self._lock:
            self._fixed = ()
            self._install(())

    def _install(self, asked: tuple[TapPoint, ...]) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self.points, self._asked = [], (), asked
        model = self._model()
        if model is None or not asked:
            return
        stacks, points = find_stacks(model), []
        for point in asked:
            try:
                socket = socket_at(stacks, point)
                self._admit(point)
            except NoPartError as missing:
                log.error("tap_point_not_captured tap_point=%s: %s", point.name, missing)  # noqa: TRY400 - no bug of ours
            else:
                take = _taker(point, self._keeper, self._recorder, self._faults)
                self._handles.append(plug(socket, take if self._cost is None else self._cost.inside(take)))
                points.append(point)
        self.points = tuple(points)

    def _admit(self, point: TapPoint) -> None:
        """Say what the self-test found of it. Raises NoPartError if that was no states, or not such as can be taken."""
        outcome, why = self._findings.get(point, Finding(Outcome.NOT_TESTED, "there was no self-test"))
        if outcome is Outcome.REFUSED:
            raise NoPartError(f"refused by the self-test: {why}")
        if outcome is Outcome.NOT_TESTED:
            log.warning("self_test tap_point=%s: not tested: %s", point.name, why)
        else:
            log.info("self_test tap_point=%s: %s", point.name, outcome.value)


def plug(socket: Socket, take: Callable[[Any], None]) -> RemovableHandle:
    """From now on ``take`` gets the states that pass there."""
    if socket.reads_input:
        return socket.module.register_forward_pre_hook(eager(lambda _module, args: take(args[0])))
    first = eager(lambda _module, _args, output: take(output[0] if isinstance(output, tuple) else output))
    return socket.module.register_forward_hook(first)


def socket_at(stacks: Mapping[Stack, StackParts], point: TapPoint) -> Socket:
    """Raises NoPartError if the model has no such stack, block or site."""
    parts = stacks.get(point.stack)
    if parts is None:
        raise NoPartError(f"the model has no {point.stack.value} beside its own blocks")
    if not 0 <= point.layer < len(parts.blocks):
        raise NoPartError(f"its blocks are 0 .. {len(parts.blocks) - 1}")
    return find_socket(parts.blocks[point.layer], point.site)


def _taker(point: TapPoint, keeper: Keeper, recorder: Recorder, faults: Faults) -> Callable[[Any], None]:
    def take(states: Any) -> None:
        step = recorder.open
        if step is None or not step.wanted:
            return
        try:
            states = averaged(step, states)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            faults.note("layer_hook", error)
            recorder.fail()
        else:
            keeper.keep(point, states)

    return take
