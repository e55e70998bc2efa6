"""``probes validate``: whether the model uses what a signal reads. What is validated is told by what the folder holds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probes.commands import validate_circuit
from probes.commands.bars import bars
from probes.errors import LabError

if TYPE_CHECKING:
    from probes.activations.facts import StoreFacts
    from probes.causal.behaviour import Behaviour
    from probes.causal.case import Settings
    from probes.draft import Draft
    from probes.stages import Validated

_COMMON = frozenset({"folder", "model", "seed", "randoms", "run"})


class _Kind(NamedTuple):
    """What can be validated. marker: a file that only its folders have; add: its own options, each None if it is not given."""

    name: str
    marker: str
    add: Callable[[Any], None]
    run: Callable[[argparse.Namespace], int]


def add(commands: Any) -> None:
    validate = commands.add_parser(
        "validate",
        help="intervene on the model: does it use what the signal reads?",
        description="Of a probe: take out, steer, exchange and erase what it reads, while the model answers a question about test "
        "texts, and compare with random directions that change its states as much. Of a circuit: take its nodes away, and others, "
        "and see what is left of the behaviour, and of what its readouts say. The result is the signal's evidence.",
    )
    validate.add_argument(
        "folder",
        type=Path,
        metavar="DRAFT",
        help="a probe in the making (see `probes train`) or a circuit (`probes discover`)",
    )
    validate.add_argument("--model", type=Path, required=True, help="folder or GGUF file of the model that was read")
    validate.add_argument("--seed", type=int, default=0)
    validate.add_argument(
        "--randoms", type=int, help="random directions, or sets of nodes, to compare with (a probe: 20, a circuit: 24)"
    )
    for kind in _KINDS:
        kind.add(validate.add_argument_group(f"of a {kind.name}"))
    validate.set_defaults(run=_validate)


def _validate(arguments: argparse.Namespace) -> int:
    for kind in _KINDS:
        if (arguments.folder / kind.marker).is_file():
            _must_be_of(kind, arguments)
            return kind.run(arguments)
    raise LabError(
        f"{arguments.folder} holds nothing that can be validated: want a draft made by `probes train` or `probes discover`"
    )


def _must_be_of(kind: _Kind, arguments: argparse.Namespace) -> None:
    """An option of another kind would do nothing, and whoever gave it would not know."""
    own = argparse.ArgumentParser()
    kind.add(own)
    known = _COMMON | vars(own.parse_args([])).keys()
    given = {name for name, value in vars(arguments).items() if value is not None}
    if others := sorted(f"--{name.replace('_', '-')}" for name in given - known):
        raise LabError(f"{arguments.folder} is a {kind.name}, for which {', '.join(others)} would do nothing")


def _add_of_probe(group: Any) -> None:
    group.add_argument("--budget-s", type=float, help="seconds for interventions (300)")
    group.add_argument("--texts", type=int, help="test texts to ask about, at most (64)")
    group.add_argument("--max-tokens", type=int, help="of a prompt; longer ones are left out, and told (1024)")
    group.add_argument("--steer", help="standard deviations to steer by, such as 1,2,4 (2)")
    group.add_argument(
        "--null",
        choices=("matched", "isotropic"),
        help="random directions along which states spread as much as along the probe, or any (matched)",
    )
    asked = group.add_mutually_exclusive_group()
    asked.add_argument(
        "--answers", help="the two answers asked for, such as positive,negative; default: the two labels"
    )
    asked.add_argument(
        "--behaviour", type=Path, help="YAML or JSON: template, lead, positive, negative, measure (log_odds or auroc)"
    )


def _run_probe(arguments: argparse.Namespace) -> int:
    from probes.activations.model import open_model, prepared
    from probes.causal.validation import validate
    from probes.draft import Draft

    draft = Draft(arguments.folder)
    settings = _settings(arguments, draft)
    settings.check()
    dtype: Any = _facts(draft).model.dtype
    with bars() as shown:
        lab = open_model(prepared(arguments.model, shown), dtype)
        found = validate(draft, lab, settings, shown)
    _show(found)
    return 0


def _settings(arguments: argparse.Namespace, draft: Draft) -> Settings:
    """What was given; all else is as `Settings` has it."""
    from probes.causal.case import Settings
    from probes.causal.directions import Null

    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("budget_s", "randoms", "texts", "max_tokens", "seed")
        if getattr(arguments, name) is not None
    }
    if arguments.steer is not None:
        given["steer"] = _multiples(arguments.steer)
    if arguments.null is not None:
        given["null"] = Null(arguments.null)
    return Settings(behaviour=_behaviour(arguments, draft), **given)


# A new kind of signal is one line.
_KINDS = (
    _Kind("probe", "training.json", _add_of_probe, _run_probe),
    _Kind("circuit", validate_circuit.MARKER, validate_circuit.add, validate_circuit.run),
)


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
