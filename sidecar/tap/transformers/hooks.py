"""Forward hooks after the chosen blocks: they keep the chosen rows of the step that their thread is in, or the plan's readings."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sidecar.tap.client import TapClient
from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.recorder import OpenStep, Recorder
from sidecar.tap.transformers.blocks import find_blocks
from sidecar.tap.transformers.cost import Cost
from sidecar.tap.transformers.device import DeviceSteps
from sidecar.tap.transformers.projection import product
from sidecar.tap.transformers.states import copy_rows
from sidecar.tap.transformers.workshop import Workshop
from sidecar.types import Site, TapPoint

if TYPE_CHECKING:
    import torch
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
        layers: Sequence[int] | None,
        cost: Cost | None,
    ) -> None:
        self._model = weakref.ref(model)
        self._recorder = recorder
        self._client = client
        self._faults = faults
        self._workshop = Workshop()
        self._steps = DeviceSteps(self._workshop)
        self._cost = cost
        self._fixed = None if layers is None else tuple(TapPoint(layer) for layer in sorted(set(layers)))
        self._asked: tuple[TapPoint, ...] | None = None
        self._handles: list[RemovableHandle] = []
        self._lock = threading.Lock()
        self.points: tuple[TapPoint, ...] = ()

    def refresh(self) -> None:
        """Follow the sidecar's wish, or the fixed layers. Costs one comparison if nothing changed."""
        asked = self._client.settings.tap_points if self._fixed is None else self._fixed
        if asked is not self._asked:
            with self._lock:
                self._install(asked)

    @property
    def asked(self) -> bool:
        """Somebody wants rows, whether or not they can be had: what is asked for and not captured must show as missing."""
        return bool(self._asked)

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
        blocks = find_blocks(model)
        self.points = tuple(point for point in asked if point.site is Site.RESID_POST and point.layer < len(blocks))
        keep = _keeper(self._recorder, self._steps, self._faults)
        for point in self.points:
            hook = _hook(point, self._recorder, keep, self._faults)
            hook = hook if self._cost is None else self._cost.inside(hook)
            self._handles.append(blocks[point.layer].register_forward_hook(eager(hook)))
        for point in set(asked) - set(self.points):
            log.error(
                "tap_point_not_captured tap_point=%s: only resid_post of the model's own blocks can be", point.name
            )


Keep: TypeAlias = "Callable[[OpenStep, TapPoint, torch.Tensor], None]"


def _keeper(recorder: Recorder, steps: DeviceSteps, faults: Faults) -> Keep:
    """Keeps a step's rows at a tap point: those on a CPU at once, those on a GPU with the other tap points' at its end."""

    def finish() -> None:
        try:
            for point, kept in steps.finish():
                recorder.keep(point, kept)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            faults.note("step_end", error)
            recorder.fail()

    def keep(step: OpenStep, point: TapPoint, states: torch.Tensor) -> None:
        if not states.is_cpu:
            steps.take(step, point, states)
            step.at_end = finish
        elif step.plan is None:
            recorder.keep(point, copy_rows(step, states))
        else:
            recorder.keep(point, product(step, step.plan, point, states))

    return keep


def _hook(point: TapPoint, recorder: Recorder, keep: Keep, faults: Faults) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_block: nn.Module, _args: Any, output: Any) -> None:
        step = recorder.open
        if step is None or not step.wanted:
            return
        try:
            keep(step, point, output[0] if isinstance(output, tuple) else output)
        except Unsupported as limit:
            faults.note("projection", limit)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            faults.note("layer_hook", error)
            recorder.fail()

    return hook
