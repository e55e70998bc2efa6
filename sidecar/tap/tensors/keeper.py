"""From a tensor of the model to rows, or readings, that the step owns: whichever device it is on, in raw and projected mode."""

from __future__ import annotations

import torch

from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.recorder import OpenStep, Recorder
from sidecar.tap.tensors.device import DeviceSteps
from sidecar.tap.tensors.projection import product
from sidecar.tap.tensors.states import copy_rows
from sidecar.tap.tensors.workshop import Workshop
from sidecar.types import TapPoint


class Keeper:
    """Keeps a step's rows at a tap point: those on a CPU at once, those on a GPU with the other tap points' at its end."""

    def __init__(self, recorder: Recorder, faults: Faults) -> None:
        self._recorder = recorder
        self._faults = faults
        self.workshop = Workshop()
        self._steps = DeviceSteps(self.workshop)

    def keep(self, point: TapPoint, states: torch.Tensor) -> None:
        """The rows of the calling thread's step, of ``states`` [..., D], any leading shape. Raises nothing."""
        step = self._recorder.open
        if step is None or not step.wanted:
            return
        try:
            self._take(step, point, states)
        except Unsupported as limit:
            self._faults.note("projection", limit)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("layer_hook", error)
            self._recorder.fail()

    def _take(self, step: OpenStep, point: TapPoint, states: torch.Tensor) -> None:
        if not states.is_cpu:
            self._steps.take(step, point, states)
            step.at_end = self._finish
        elif step.plan is None:
            step.tensors[point] = copy_rows(step, states)
        else:
            step.tensors[point] = product(step, step.plan, point, states)

    def _finish(self) -> None:
        try:
            for point, kept in self._steps.finish():
                self._recorder.keep(point, kept)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
            self._faults.note("step_end", error)
            self._recorder.fail()
