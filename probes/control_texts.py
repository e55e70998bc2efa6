"""What positive controls are made from: everyday chats with the model's own answers, and texts like those that it will be sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.activations.feeding import Feeding, feed
from probes.activations.model import LabModel
from probes.answers import answered
from probes.control import SKIP_POSITIONS
from probes.data.reading import Loaded
from probes.data.texts import LabelledText
from probes.prompts import EVERYDAY

if TYPE_CHECKING:
    from rich.progress import Progress

ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Halves:
    """Token ids of each text: one half to fit on, the other to measure on. licence: of the texts beside the everyday ones."""

    train: tuple[list[int], ...]
    held_out: tuple[list[int], ...]
    licence: str

    def told(self) -> dict[str, Any]:
        """The same as the manifest's ``training_data``."""
        made = f"{len(self.train)} chats, half of the everyday ones with the model's own answers"
        return {
            "name": f"{made}; held out: {len(self.held_out)}",
            "digest": hashlib.sha256(json.dumps([self.train, self.held_out]).encode()).hexdigest(),
            "rows": sum(len(ids) - SKIP_POSITIONS for ids in self.train),
            "licence": f"{self.licence}; the everyday prompts: Apache-2.0",
        }


def fed_halves(lab: LabModel, loaded: Loaded, licence: str, bars: Progress) -> Halves:
    """Have the model answer the everyday prompts, and put half of them and half of the texts on either side.

    A text that is longer than the model reads loses its end. Raises LabError naming the row of one that cannot be fed.
    """
    chats = answered(lab, EVERYDAY, ANSWER_TOKENS, bars)
    fed = feed(lab, loaded.texts, loaded.places, Feeding(truncate=True)).tokens
    sides = halved(loaded.texts)
    train, held_out = (
        tuple(ids for ids in (*chats[side::2], *(fed[text] for text in sides[side])) if len(ids) > SKIP_POSITIONS)
        for side in (0, 1)
    )
    return Halves(train, held_out, licence)


def halved(texts: Sequence[LabelledText]) -> tuple[list[int], list[int]]:
    """The texts' numbers in two halves, as even as their groups allow: texts of one group are on one side."""
    sides: tuple[list[int], list[int]] = ([], [])
    side_of: dict[str, int] = {}
    for number, text in enumerate(texts):
        emptier = int(len(sides[0]) > len(sides[1]))
        sides[side_of.setdefault(text.group or text.key, emptier)].append(number)
    return sides
