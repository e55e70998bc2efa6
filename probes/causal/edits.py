"""Changes to the states at a tap point while the model runs: what an intervention does to every position from ``skip`` on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
# Takes states [prompts, positions, D], the prompts' indices (none: what all prompts begin with) and the first position; returns
# changed ones, of the same shape.
Edit: TypeAlias = "Callable[[torch.Tensor, Sequence[int], int], torch.Tensor]"


@dataclass(frozen=True, slots=True)
class Edits:
    """here: at each of the probe's tap points, in their order. later: at the output of later blocks, by block."""

    here: tuple[Edit, ...]
    later: Mapping[int, Edit] = field(default_factory=dict)


def removed(left: Array, right: Array, centre: Array, *, skip: int, strength: float = 1.0) -> Edit:
    """Make x into x - strength * left @ right.T @ (x - centre); left, right: [D, r], centre: [D].

    With an orthonormal basis on both sides this takes the states' part in a subspace to its mean: what differs between states
    there is gone, and where they lie on the whole stays. The two differ for LEACE.
    """
    taken, read, middle = _tensors(strength * left.T, right, centre)

    def edit(states: torch.Tensor, _prompts: Sequence[int], first: int) -> torch.Tensor:
        changed = states.clone()
        part = states[:, max(0, skip - first) :].float()
        changed[:, max(0, skip - first) :] = part - ((part - middle) @ read) @ taken
        return changed

    return edit


def shifted(vector: Array, *, skip: int) -> Edit:
    """Add a vector [D] to every state."""
    (step,) = _tensors(vector)

    def edit(states: torch.Tensor, _prompts: Sequence[int], first: int) -> torch.Tensor:
        changed = states.clone()
        changed[:, max(0, skip - first) :] = states[:, max(0, skip - first) :].float() + step
        return changed

    return edit


def replaced(basis: Array, targets: Mapping[int, Array], *, skip: int) -> Edit:
    """Set the states' coordinates in an orthonormal basis [D, r] to others.

    targets: by prompt, [positions from skip on, r]; other prompts stay as they are, and so does what all begin with.
    """
    (onto,) = _tensors(basis)
    wanted = {prompt: _tensors(target)[0] for prompt, target in targets.items()}

    def edit(states: torch.Tensor, prompts: Sequence[int], first: int) -> torch.Tensor:
        changed, start = states.clone(), max(0, skip - first)
        for row, prompt in enumerate(prompts):
            if prompt in wanted:
                target = wanted[prompt][max(0, first - skip) :]
                part = states[row, start : start + len(target)].float()
                changed[row, start : start + len(target)] = part + (target - part @ onto) @ onto.T
        return changed

    return edit


def _tensors(*arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
    """In float32; a model of less precision gets its states back in its own."""
    import torch

    return [torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for array in arrays]
