"""Used, not only decodable: whether the model's own behaviour hangs on the direction that a probe reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from probes.causal.bench import Bench
from probes.causal.case import Case, Settings, open_case
from probes.causal.edits import Edits
from probes.causal.erasure import Refit
from probes.causal.evidence import behaves, erased, needed, sufficient, weigh
from probes.causal.interventions import Plan, carry_out, keys, plans
from probes.causal.passes import OutOfTimeError, Passes
from probes.draft import Draft
from probes.journal import Journal
from probes.kinds.threads import one_thread
from probes.quality.bootstrap import Resamples
from probes.stages import Evaluated, Gate, Intervention, Validated

if TYPE_CHECKING:
    from rich.progress import Progress

    from probes.activations.model import LabModel

KEPT = "validation.passes.jsonl"


def validate(
    draft: Draft, lab: LabModel, settings: Settings, bars: Progress, *, clock: Callable[[], float] = time.monotonic
) -> Validated:
    """Do every intervention that the budget allows and write what it shows into the draft.

    What is finished is kept in the draft's folder until all is done: the same call goes on from there, after a kill too. The
    same draft, model and settings give the same numbers. Raises LabError if the model is not the one that the probe reads, or
    if there is too little to ask it about.
    """
    started = clock()
    case = open_case(draft, lab, settings)
    with one_thread():
        bench, refit = case.bench(bars)
        done, not_run = _carry_out(case, bench, bars, clock)
        found = _validated(case, bench, refit, done, not_run, clock() - started)
    draft.write(found)
    return found


def _carry_out(
    case: Case, bench: Bench, bars: Progress, clock: Callable[[], float]
) -> tuple[list[Intervention], list[str]]:
    """What was done, and what was not and why."""
    todo, impossible = plans(bench, case.settings.steer)
    wanted = {plan.name: keys(plan, bench.randoms) for plan in todo}
    task = bars.add_task("intervening", total=sum(map(len, wanted.values())))
    kept = Journal(case.draft.folder / KEPT, case.fingerprint(bench.questions))
    kept.load()
    run: Passes[Edits] = Passes(
        bench.resumed.run, kept, case.settings.budget_s, tick=lambda: bars.advance(task), clock=clock
    )
    done: list[Intervention] = []
    late: list[str] = []
    for plan in todo:
        bars.update(task, description=plan.name)
        found = _within_budget(plan, wanted[plan.name], bench, run)
        if found is None:
            late.append(
                f"{plan.name}: no time left of {case.settings.budget_s:g} s; the same command goes on from here"
            )
        else:
            done.append(found)
    if not late:
        kept.forget()
    return done, [*impossible, *late]


def _within_budget(plan: Plan, wanted: Sequence[str], bench: Bench, run: Passes[Edits]) -> Intervention | None:
    """None if there is no time for all of it: half an intervention says nothing."""
    if not run.affords(wanted):
        return None
    try:
        return carry_out(plan, bench, run)
    except OutOfTimeError:
        return None


def _validated(
    case: Case, bench: Bench, refit: Refit, done: Sequence[Intervention], not_run: Sequence[str], seconds: float
) -> Validated:
    asked, limit = bench.questions, case.max_tokens
    left_out = [f"{asked.left_out} test texts of more than {limit} tokens: not asked about"] if asked.left_out else []
    gates = (_behaves(bench), needed(done), sufficient(done), erased(refit))
    return Validated(
        behaviour=f"On {len(asked.prompts)} test texts, {case.behaviour.told()}.",
        behaviour_auroc=_auroc(bench),
        interventions=tuple(done),
        not_run=(*not_run, *left_out),
        evidence=weigh(gates, case.draft.stage(Evaluated)),
        gates=gates,
        seconds=seconds,
        budget_s=case.settings.budget_s,
    )


def _behaves(bench: Bench) -> Gate:
    asked = bench.questions
    resamples = Resamples(asked.labels, asked.groups, bench.seed)
    return behaves(_auroc(bench), resamples.auroc(bench.resumed.log_odds))


def _auroc(bench: Bench) -> float:
    """How well the untouched model's log-odds tell the labels apart."""
    from probes.auroc import auroc

    return auroc(bench.resumed.log_odds, bench.questions.labels)
