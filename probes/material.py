"""Labelled texts together with the model's states on them: what probes are trained, calibrated and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.collect import LabModel, chat_ids, collect
from probes.datasets import Example, Source, Split, load_examples
from probes.states import States
from sidecar.types import BoolArray

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True, slots=True)
class Material:
    """Text i of ``examples`` is text i of every layer's states."""

    examples: tuple[Example, ...]
    states: dict[int, States]

    @property
    def labels(self) -> BoolArray:
        return np.array([example.label for example in self.examples])

    def indices(self, split: Split) -> list[int]:
        return [index for index, example in enumerate(self.examples) if example.split is split]

    def of(self, split: Split) -> list[Example]:
        return [self.examples[index] for index in self.indices(split)]


def gather(lab: LabModel, source: Source, layers: Sequence[int], bars: Progress, *, limit: int) -> Material:
    """Read a labelled set and the states of its texts, each as a chat user's message."""
    examples = load_examples(source, limit=limit)
    return Material(examples, collect(lab, [chat_ids(lab, example.text) for example in examples], layers, bars))
