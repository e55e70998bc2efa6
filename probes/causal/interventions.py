"""The interventions: what each does along a direction, and how its effect on the model's answers is counted.

Every effect is positive where it goes the way that a model would be moved that uses what the probe reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from probes.causal.bench import Bench, Stand
from probes.causal.directions import Null
from probes.causal.edits import Edit, Edits, removed, replaced, shifted
from probes.causal.effects import Statistic, lifted, lost, p_value, passes, value
from probes.causal.pairs import aligned
from probes.causal.passes import Passes
from probes.quality.bootstrap import Resamples
from probes.stages import Intervention
from sidecar.types import IndexArray, Site

Array = npt.NDArray[np.float64]
_RIVALS = {
    Null.MATCHED: "Random directions are such that states spread along them as much as along the probe.",
    Null.ISOTROPIC: "Random directions are any; states are changed along them by no more than along the probe.",
}
ABLATE, ABLATE_AFTER, PATCH, ERASE, STEER = "ablate", "ablate_after", "patch", "erase", "steer"


@dataclass(frozen=True, slots=True)
class Plan:
    """make: for a rival (None: the probe), the edits of each of its ``passes`` passes, one by one.

    statistic: from the log-odds of those passes on the texts ``rows``. groups: which of these are drawn together.
    """

    name: str
    text: str
    passes: int
    make: Callable[[int | None, int], Edits]
    statistic: Callable[[Sequence[Array]], Statistic]
    rows: IndexArray
    groups: IndexArray


def plans(bench: Bench, multiples: Sequence[float]) -> tuple[list[Plan], list[str]]:
    """All that can be done, what decides most first; and what cannot, and why."""
    possible = [_ablate(bench), _patch(bench), *(_steer(bench, multiple) for multiple in multiples)]
    if bench.resumed.later_means:
        return [*possible, _ablate_after(bench), _erase(bench)], []
    heads = all(where.site is Site.ATTN_HEADS for where in bench.resumed.everywhere)
    why = "heads before their output projection" if heads else "the last block"
    return [*possible, _erase(bench)], [f"{ABLATE_AFTER}: nothing after the tap point ({why}) has the same space"]


def keys(plan: Plan, randoms: int) -> list[str]:
    """Names of all its passes, the probe's own first."""
    return [_key(plan, rival, number) for rival in (None, *range(randoms)) for number in range(plan.passes)]


def carry_out(plan: Plan, bench: Bench, run: Passes[Edits]) -> Intervention:
    """Do it along the probe and along every random rival. Raises OutOfTimeError when the budget ends."""
    count = len(plan.rows)
    own = plan.statistic(_odds(plan, None, run))
    effect = value(own, count)
    randoms = [value(plan.statistic(_odds(plan, rival, run)), count) for rival in range(bench.randoms)]
    between = Resamples(bench.questions.labels[plan.rows], plan.groups, bench.seed).interval(own)
    p = p_value(effect, randoms)
    return Intervention(
        name=plan.name,
        text=plan.text if plan.name == ERASE else f"{plan.text} {_RIVALS[bench.null]}",
        effect=effect,
        interval=between,
        random_effects=tuple(randoms),
        p_value=p,
        passed=passes(between, p),
    )


def _odds(plan: Plan, rival: int | None, run: Passes[Edits]) -> list[Array]:
    return [
        run(_key(plan, rival, number), partial(plan.make, rival, number))[plan.rows] for number in range(plan.passes)
    ]


def _key(plan: Plan, rival: int | None, number: int) -> str:
    return f"{plan.name} {'probe' if rival is None else rival} {number}"


def _losing(bench: Bench, rows: IndexArray) -> Callable[[Sequence[Array]], Statistic]:
    before, labels = bench.resumed.log_odds[rows], bench.questions.labels[rows]
    return lambda odds: lost(before, odds[0], labels, bench.measure)


def _over_all(bench: Bench, name: str, text: str, make: Callable[[int | None, int], Edits]) -> Plan:
    """One pass, and the contrast that it costs over all texts."""
    rows = np.arange(len(bench.questions.prompts))
    return Plan(name, text, 1, make, _losing(bench, rows), rows, bench.questions.groups)


def _ablate(bench: Bench) -> Plan:
    def make(rival: int | None, _number: int) -> Edits:
        return Edits(tuple(_removed(stand, rival, stand.around.mean, bench.skip) for stand in bench.stands))

    text = f"At {bench.where}, every state's part along the probe is set to its mean; the effect is the contrast lost."
    return _over_all(bench, ABLATE, text, make)


def _ablate_after(bench: Bench) -> Plan:
    def make(rival: int | None, _number: int) -> Edits:
        later = {
            layer: _removed(bench.stands[bench.resumed.later[layer]], rival, mean, bench.skip)
            for layer, mean in bench.resumed.later_means.items()
        }
        return Edits(_ablate(bench).make(rival, 0).here, later)

    nearest = " (for several tap points: along that of the nearest below)" if len(bench.stands) > 1 else ""
    text = (
        f"At {bench.where} and after every later block, the part along the probe{nearest} is set to its mean there, so that "
        "no later block can write it again; the effect is the contrast lost."
    )
    return _over_all(bench, ABLATE_AFTER, text, make)


def _removed(stand: Stand, rival: int | None, mean: Array, skip: int) -> Edit:
    basis = stand.basis(rival)
    return removed(basis, basis, mean, skip=skip, strength=stand.strength(basis))


def _erased(stand: Stand, rival: int | None, skip: int) -> Edit:
    left, right, strength = stand.erasing(rival)
    return removed(left, right, stand.around.mean, skip=skip, strength=strength)


def _steer(bench: Bench, multiple: float) -> Plan:
    def make(rival: int | None, number: int) -> Edits:
        sign = 1.0 if number == 0 else -1.0
        return Edits(
            tuple(
                shifted(sign * multiple * stand.width * stand.along(rival), skip=bench.skip) for stand in bench.stands
            )
        )

    text = (
        f"At {bench.where}, {multiple:g} standard deviations of the states along the probe are added to every state, "
        "and taken from it; the effect is half of what lies between the two."
    )
    rows = np.arange(len(bench.questions.prompts))
    return Plan(
        f"{STEER}_{multiple:g}sd",
        text,
        2,
        make,
        lambda odds: lifted(odds[0], odds[1], bench.measure),
        rows,
        bench.questions.groups,
    )


def _patch(bench: Bench) -> Plan:
    order = list(_both_ways(bench))

    def exchanged(stand: Stand, rival: int | None) -> Edit:
        basis = stand.basis(rival)
        share = stand.strength(basis)
        read = {prompt: stand.states[prompt] @ basis for prompt, _, _ in order}
        targets = {prompt: share * read[donor][places] + (1 - share) * read[prompt] for prompt, donor, places in order}
        return replaced(basis, targets, skip=bench.skip)

    def make(rival: int | None, _number: int) -> Edits:
        return Edits(tuple(exchanged(stand, rival) for stand in bench.stands))

    text = (
        f"At {bench.where}, the part along the probe is exchanged between a positive and a negative text, position by "
        f"position ({bench.paired}); the effect is the contrast lost."
    )
    rows = np.array([[pair.positive, pair.negative] for pair in bench.pairs], dtype=np.intp).ravel()
    return Plan(PATCH, text, 1, make, _losing(bench, rows), rows, np.arange(len(rows)) // 2)


def _both_ways(bench: Bench) -> Iterator[tuple[int, int, list[int]]]:
    """Receiver, donor, and for each of the receiver's states the donor's state that it takes after."""
    for pair in bench.pairs:
        for prompt, donor in ((pair.positive, pair.negative), (pair.negative, pair.positive)):
            places = aligned(bench.questions.prompts[prompt], bench.questions.prompts[donor])[bench.skip :]
            yield prompt, donor, [max(place - bench.skip, 0) for place in places]


def _erase(bench: Bench) -> Plan:
    def make(rival: int | None, _number: int) -> Edits:
        return Edits(tuple(_erased(stand, rival, bench.skip) for stand in bench.stands))

    text = (
        f"At {bench.where}, the concept is erased by LEACE, fitted on the training texts' states; random erasures "
        "change states as much, in the same metric, for no concept. The effect is the contrast lost."
    )
    return _over_all(bench, ERASE, text, make)
