"""What is asked again and again while one circuit is validated: behaviours under ablation, and where the circuit is at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from probes.activations.model import LabModel
from probes.circuits.choosing import acting
from probes.circuits.findings import RANDOM_SETS
from probes.circuits.nodes import Node
from probes.circuits.replacing import Ablation
from probes.circuits.running import Decoder
from probes.circuits.validation.ablating import Ablated
from probes.circuits.validation.claim import Claim
from probes.circuits.validation.gates import FEWEST_RANDOMS
from probes.circuits.validation.measures import Behaviour
from probes.circuits.validation.traffic import AT_WORK
from probes.errors import LabError
from sidecar.types import FloatArray, TapPoint

Told: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """randoms: random node sets to compare with.

    readout_pairs: pairs at which the circuit is at work, in each half, on which every other node is tried on the readouts.
    """

    randoms: int = 24
    readout_pairs: int = 16
    seed: int = 0
    told: Told = field(default=lambda _text: None)

    def check(self) -> None:
        """Raises LabError for what could not work."""
        if not FEWEST_RANDOMS <= self.randoms <= RANDOM_SETS:
            raise LabError(
                f"from {FEWEST_RANDOMS} random sets on one in twenty can be told from chance; at most {RANDOM_SETS}"
            )
        if self.readout_pairs < 1:
            raise LabError("the readouts want a pair at least")


@dataclass(frozen=True, slots=True)
class Bench:
    """engaged: numbers of the pairs at whose last token the circuit is at work."""

    lab: LabModel
    claim: Claim
    settings: Settings
    decoder: Decoder
    ablated: Mapping[Ablation, Ablated]
    behaviours: Mapping[Ablation, Behaviour]
    engaged: list[int]

    @classmethod
    def of(cls, lab: LabModel, claim: Claim, settings: Settings) -> Bench:
        """Raises LabError if there is nothing to validate."""
        settings.check()
        decoder = Decoder(lab.model)
        ablated, behaviours = {}, {}
        for kind in Ablation:
            settings.told(f"{kind.value} ablation on {len(claim.pairs)} pairs")
            ablated[kind] = Ablated(decoder, claim.pairs, kind, claim.ranked)
            behaviours[kind] = Behaviour(ablated[kind], claim.ranked, settings.seed)
        engaged = _engaged(behaviours[Ablation.RESAMPLE], acting(claim.chosen.nodes))
        return cls(lab, claim, settings, decoder, ablated, behaviours, engaged)

    @property
    def acting(self) -> tuple[Node, ...]:
        return acting(self.claim.chosen.nodes)

    def outside(self) -> list[Node]:
        """Raises LabError if every node is of the circuit."""
        found = sorted(set(self.claim.ranked) - set(self.claim.chosen.nodes))
        if not found:
            raise LabError("there is no node outside the circuit whose effect could be compared")
        return found

    def rows(self, points: Sequence[TapPoint]) -> dict[TapPoint, FloatArray]:
        """On engaged tokens, [P, width] by tap point."""
        _, rows = self.ablated[Ablation.MEAN].rows((), points)
        return {point: states[self.engaged] for point, states in rows.items()}

    def half(self, side: int) -> Ablated:
        """Ablation on the first few of every other engaged pair: what is fitted on side 0 is put to the test on side 1."""
        places = self.engaged[side::2][: self.settings.readout_pairs]
        return Ablated(self.decoder, [self.claim.pairs[one] for one in places], Ablation.MEAN, self.claim.ranked)


def _engaged(behaviour: Behaviour, nodes: Sequence[Node]) -> list[int]:
    """Pairs answered right, and less so by `AT_WORK` nats without the nodes that act. Raises LabError for fewer than 4."""
    at_work = (behaviour.whole > 0) & (behaviour.whole - behaviour.without(nodes) >= AT_WORK)
    found = np.flatnonzero(at_work).tolist()
    if len(found) < 4:
        raise LabError(
            f"the circuit is at work on {len(found)} of {len(at_work)} pairs: no readout can be fitted on so few"
        )
    return found
