"""``probes validate``: whether the model uses what a signal reads. What is validated is told by what the folder holds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars
from probes.errors import LabError

if TYPE_CHECKING:
    from probes.activations.facts import StoreFacts
    from probes.causal.behaviour import Behaviour
    from probes.draft import Draft
    from probes.stages import Validated


def add(commands: Any) -> None:
    validate = commands.add_parser(
        "validate",
        help="intervene on the model: does it use what the signal reads?",
        description="Take out, steer, exchange and erase what a probe reads, while the model answers a question about test "
        "texts, and compare with random directions that change its states as much. The result is the signal's evidence.",
    )
    validate.add_argument("folder", type=Path, metavar="DRAFT", help="a probe in the making, see `probes train`")
    validate.add_argument("--model", type=Path, required=True, help="folder or GGUF file of the model that was read")
    validate.add_argument("--budget-s", type=float, default=300.0, help="seconds for interventions (%(default)g)")
    validate.add_argument("--randoms", type=int, default=20, help="random directions to compare with (%(default)s)")
    validate.add_argument("--texts", type=int, default=64, help="test texts to ask about, at most (%(default)s)")
    validate.add_argument(
        "--max-tokens", type=int, default=1024, help="of a prompt; longer ones are left out, and told"
    )
    validate.add_argument("--steer", default="2", help="standard deviations to steer by, such as 1,2,4 (%(default)s)")
    validate.add_argument(
        "--null",
        choices=("matched", "isotropic"),
        default="matched",
        help="random directions along which states spread as much as along the probe, or any (%(default)s)",
    )
    validate.add_argument("--seed", type=int, default=0)
    asked = validate.add_mutually_exclusive_group()
    asked.add_argument(
        "--answers", help="the two answers asked for, such as positive,negative; default: the two labels"
    )
    asked.add_argument(
        "--behaviour", type=Path, help="YAML or JSON: template, lead, positive, negative, measure (log_odds or auroc)"
    )
    validate.set_defaults(run=_validate)


def _validate(arguments: argparse.Namespace) -> int:
    for marker, run in _KINDS.items():
        if (arguments.folder / marker).is_file():
            return run(arguments)
    raise LabError(f"{arguments.folder} holds nothing that can be validated: want a draft made by `probes train`")


def _draft(arguments: argparse.Namespace) -> int:
    from probes.activations.model import open_model, prepared
    from probes.causal.case import Settings
    from probes.causal.directions import Null
    from probes.causal.validation import validate
    from probes.draft import Draft

    draft = Draft(arguments.folder)
    settings = Settings(
        behaviour=_behaviour(arguments, draft),
        budget_s=arguments.budget_s,
        randoms=arguments.randoms,
        texts=arguments.texts,
        max_tokens=arguments.max_tokens,
        steer=_multiples(arguments.steer),
        null=Null(arguments.null),
        seed=arguments.seed,
    )
    settings.check()
    dtype: Any = _facts(draft).model.dtype
    with bars() as shown:
        lab = open_model(prepared(arguments.model, shown), dtype)
        found = validate(draft, lab, settings, shown)
    _show(found)
    return 0


# By the file that only this kind of folder has; a new kind of signal is one line.
_KINDS: dict[str, Callable[[argparse.Namespace], int]] = {"training.json": _draft}


def _behaviour(arguments: argparse.Namespace, draft: Draft) -> Behaviour | None:
    from probes.causal.behaviour import from_answers, read_behaviour

    if arguments.behaviour is not None:
        return read_behaviour(arguments.behaviour)
    if arguments.answers is None:
        return None
    return from_answers(arguments.answers, chat=_facts(draft).chat)


def _facts(draft: Draft) -> StoreFacts:
    from probes.activations.store import ActivationStore

    return ActivationStore.open(Path(draft.training.store)).facts


def _multiples(told: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in told.split(","))
    except ValueError:
        raise LabError(f"--steer wants numbers such as 1,2,4, not {told!r}") from None


def _show(found: Validated) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("intervention", "effect [95 %]", "random: median, largest", "p", "")
    for one in found.interventions:
        ordered = sorted(one.random_effects)
        table.add_row(
            one.name,
            f"{one.effect:+.3f} [{one.interval[0]:+.3f}, {one.interval[1]:+.3f}]",
            f"{ordered[len(ordered) // 2]:+.3f}, {ordered[-1]:+.3f}",
            f"{one.p_value:.3f}",
            "passed" if one.passed else "",
        )
    console = Console()
    console.print(found.behaviour, highlight=False)
    console.print(table)
    for gate in found.gates:
        console.print(f"{'passed' if gate.passed else 'FAILED'}  {gate.text}", highlight=False)
    for one_left in found.not_run:
        console.print(f"not run  {one_left}", highlight=False)
    console.print(f"evidence: {found.evidence.value}  ({found.seconds:.0f} s)", highlight=False)
