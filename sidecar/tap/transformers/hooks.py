"""Forward hooks after the chosen blocks: they keep the chosen rows of the step that their thread is in, or the plan's readings."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sidecar.tap.client import TapClient
from sidecar.tap.cost import Cost
from sidecar.tap.faults import Faults
from sidecar.tap.recorder import Recorder
from sidecar.tap.tensors.keeper import Keeper
from sidecar.tap.transformers.blocks import find_blocks
from sidecar.types import Site, TapPoint

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
        layers: Sequence[int] | None,
        cost: Cost | None,
    ) -> None:
        self._model = weakref.ref(model)
        self._client = client
        self._keeper = Keeper(recorder, faults)
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
        for point in self.points:
            hook = _hook(point, self._keeper.keep)
            hook = hook if self._cost is None else self._cost.inside(hook)
            self._handles.append(blocks[point.layer].register_forward_hook(eager(hook)))
        for point in set(asked) - set(self.points):
            log.error(
                "tap_point_not_captured tap_point=%s: only resid_post of the model's own blocks can be", point.name
            )


def _hook(point: TapPoint, keep: Callable[[TapPoint, Any], None]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_block: nn.Module, _args: Any, output: Any) -> None:
        keep(point, output[0] if isinstance(output, tuple) else output)

    return hook
