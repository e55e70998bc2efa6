"""``probes zoo``: make the artifacts that are shipped, and tell what they are worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from probes.commands.bars import bars


def add(commands: Any) -> None:
    zoo = commands.add_parser("zoo", help="make the artifacts that are shipped, by their recipes").add_subparsers(
        required=True, metavar="COMMAND"
    )
    build = zoo.add_parser(
        "build",
        help="collect, train, calibrate, evaluate, validate, report and pack (a probe: 10 to 15 minutes on two cores)",
        description="Takes each recipe through every stage of the lab. One that was cut off goes on where it was. A probe whose "
        "gates fail is packed as failed, with the reason in its manifest: the service shows it.",
    )
    build.add_argument("names", nargs="*", metavar="NAME", help="artifacts to make; all if none is named")
    build.add_argument("--into", type=Path, help="the folder to write to; the shipped zoo if not given")
    build.add_argument("--keep", action="store_true", help="leave activations and drafts in the cache folder")
    build.add_argument(
        "--limit", type=int, default=0, metavar="N", help="at most N texts of each set, to see that it works"
    )
    build.set_defaults(run=_build)
    shown = zoo.add_parser("list", help="recipes, and what the probes made by them are worth")
    shown.add_argument("--from", dest="folder", type=Path, help="a folder of artifacts; the shipped zoo if not given")
    shown.add_argument("--markdown", action="store_true", help="the table of docs/zoo.md")
    shown.set_defaults(run=_list)


def _build(arguments: argparse.Namespace) -> int:
    import sys

    from rich.console import Console

    from probes.recipe import ZOO
    from probes.table import artifact_table
    from probes.zoo_build import artifact_names, build_all

    known = artifact_names()
    if unknown := [name for name in arguments.names if name not in known]:
        print(f"no recipe for {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)  # noqa: T201
        return 2
    with bars() as shown:
        manifests = build_all(
            arguments.names or known, arguments.into or ZOO, shown, keep=arguments.keep, limit=arguments.limit
        )
    Console().print(artifact_table(manifests))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.recipe import ZOO, read_recipes
    from probes.zoo_table import markdown, read_rows, table

    recipes = read_recipes()
    rows = read_rows(arguments.folder or ZOO, recipes)
    if arguments.markdown:
        print(markdown(rows), end="")  # noqa: T201 - this is the command's output
    else:
        Console().print(table({row.name: row for row in rows}, recipes))
    return 0
