"""``probes circuit``: the circuits that are shipped, made by their recipes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars

if TYPE_CHECKING:
    from probes.circuits.manifest import CircuitManifest


def add(commands: Any) -> None:
    circuit = commands.add_parser("circuit", help="the circuits that are shipped").add_subparsers(
        required=True, metavar="COMMAND"
    )
    build = circuit.add_parser(
        "build",
        help="discover, validate and report shipped circuits on SmolLM2, by their recipes (each: some 10 CPU minutes)",
        description="A circuit that fails its gates is shipped as the draft that it is. A discovery that was cut off goes on where "
        "it was, and one that is done is not done again.",
    )
    build.add_argument("names", nargs="*", metavar="NAME", help="circuits to make; all if none is named")
    build.add_argument("--into", type=Path, help="the folder to write to; that of the shipped ones if not given")
    build.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    from probes.activations.model import open_model
    from probes.circuits.shipping import SHIPPED, read_recipe, recipe_names, ship
    from probes.smollm2 import prepared_model

    names = arguments.names or recipe_names()
    for name in names:
        read_recipe(name)  # what is wrong with any of them is told before minutes go by
    lab = open_model(prepared_model())
    with bars() as shown:
        made = [ship(name, lab, arguments.into or SHIPPED, shown) for name in names]
    for one in made:
        _show(one)
    return 0


def _show(found: CircuitManifest) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    verdict = "failed: " + ", ".join(found.failed) if found.failed else f"validated, {found.severity.value}"
    console.print(f"{found.name} {found.version}: {verdict}", markup=False)
