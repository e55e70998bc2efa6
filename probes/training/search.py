"""What a training tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import LabError
from probes.kinds.registry import KINDS
from probes.manifest import Aggregation
from probes.stages import Places
from probes.training.candidates import ways
from probes.training.choice import SHORTLIST
from probes.training.fitting import Way
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from probes.activations.facts import StoreFacts

DEFAULT_KINDS = tuple(KINDS)
MOST_TOGETHER = 8  # tap points of one artifact


@dataclass(frozen=True, slots=True)
class Search:
    """What to try, and under which name. None: all tap points of the store; each kind's own aggregations and strengths.

    everywhere: try every kind at every tap point. Otherwise kinds that are not quick are tried where quick ones, if any are to be
    tried, did best (`shortlist`): a concept that no pooled state shows at any layer is found by them, but maybe not at its layer.
    concatenate: several tap points that are read together, because somebody asks for it; (): the two of the shortlist, which are
    taken if they are worth it (`finalists`). The plainest of the kinds is trained over them; None: nothing is.
    """

    name: str
    description: str = ""
    kinds: tuple[str, ...] = DEFAULT_KINDS
    tap_points: tuple[TapPoint, ...] | None = None
    aggregations: tuple[Aggregation, ...] | None = None
    strengths: tuple[float, ...] | None = None
    everywhere: bool = False
    concatenate: Places | None = None
    seed: int = 0

    @property
    def ways(self) -> tuple[Way, ...]:
        """Everything that is tried at a tap point. Raises LabError for an unknown kind."""
        return ways(self.kinds, self.aggregations, self.strengths)

    @property
    def stages(self) -> tuple[tuple[Way, ...], tuple[Way, ...]]:
        """What is tried at every tap point, and what only at those where that did best."""
        everywhere = tuple(way for way in self.ways if self.everywhere or KINDS[way.kind].quick)
        if not everywhere:
            return self.ways, ()
        return everywhere, tuple(way for way in self.ways if way not in everywhere)

    @property
    def ways_together(self) -> tuple[Way, ...]:
        """What is tried over several tap points: more features ask for the plainest kind first."""
        return ways([min(self.kinds, key=DEFAULT_KINDS.index)], self.aggregations, self.strengths)

    def points(self, facts: StoreFacts) -> Places:
        """Every single tap point that is tried, by depth."""
        named = {TapPoint.parse(name) for name in facts.tap_points} if self.tap_points is None else set(self.tap_points)
        return tuple(sorted(named))

    def count(self, facts: StoreFacts) -> int:
        """How many candidates will be cross-validated."""
        points, (first, second) = len(self.points(facts)), self.stages
        together = 0 if self.concatenate is None else len(self.ways_together)
        return points * len(first) + min(points, SHORTLIST) * len(second) + together

    def must_fit(self, facts: StoreFacts) -> None:
        """Raises LabError for a tap point that was not collected, and for tap points that no artifact can read together."""
        together = self.concatenate or ()
        missing = [where.name for where in (*(self.tap_points or ()), *together) if where.name not in facts.tap_points]
        if missing:
            has = ", ".join(sorted(facts.tap_points, key=TapPoint.parse))
            raise LabError(f"the activations have no states of {', '.join(missing)}; they have: {has}")
        if self.concatenate is None:
            return
        read = together or self.points(facts)
        if len(set(read)) < 2 or len(set(together)) != len(together) or len(together) > MOST_TOGETHER:
            raise LabError(f"to read tap points together takes from 2 to {MOST_TOGETHER} of them, each once")
        if len({facts.widths[where.name] for where in read}) > 1:
            raise LabError(
                "tap points of unlike width cannot be read together: an artifact's directions have one length"
            )
