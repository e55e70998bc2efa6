"""``probes zoo``: make the artifacts that are shipped."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probes.commands.bars import bars
from probes.errors import LabError


def add(commands: Any) -> None:
    zoo = commands.add_parser("zoo", help="make the artifacts that are shipped").add_subparsers(
        required=True, metavar="COMMAND"
    )
    build = zoo.add_parser("build", help="train, calibrate, test and save shipped artifacts (all: about five minutes)")
    build.add_argument("names", nargs="*", metavar="NAME", help="artifacts to make; all if none is named")
    build.add_argument("--into", type=Path, help="the folder to write to; the shipped zoo if not given")
    build.set_defaults(run=_build)
    survey = zoo.add_parser("survey", help="compare layers and aggregations by cross-validation, and write the table")
    survey.set_defaults(run=_survey)
    for command in (build, survey):
        command.add_argument("--keep-states", action="store_true", help="leave the model's states in the cache folder")


def _build(arguments: argparse.Namespace) -> int:
    import sys

    from probes.recipes import RECIPES, ZOO

    unknown = [name for name in arguments.names if name not in RECIPES]
    if unknown:
        print(f"no recipe for {', '.join(unknown)}; there are: {', '.join(RECIPES)}", file=sys.stderr)  # noqa: T201
        return 2
    return _in_the_lab(arguments, arguments.names or list(RECIPES), arguments.into or ZOO)


def _in_the_lab(arguments: argparse.Namespace, names: Sequence[str], into: Path) -> int:
    from rich.console import Console

    from probes.smollm2 import ModelNotInstalledError
    from probes.table import artifact_table
    from probes.zoo_build import build_all

    try:
        with bars() as shown, _states(keep=arguments.keep_states):
            manifests = build_all(names, into, shown)
    except ModelNotInstalledError as error:
        raise LabError(str(error)) from None
    Console().print(artifact_table(manifests))
    return 0


def _survey(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.recipes import SURVEY
    from probes.smollm2 import ModelNotInstalledError
    from probes.survey import run_survey, survey_table, write_survey

    try:
        with bars() as shown, _states(keep=arguments.keep_states):
            found = run_survey(shown)
    except ModelNotInstalledError as error:
        raise LabError(str(error)) from None
    write_survey(found, SURVEY)
    Console().print(survey_table(found))
    return 0


@contextmanager
def _states(*, keep: bool) -> Iterator[None]:
    """Delete the collected states at the end (about a gigabyte), unless they are to be used again."""
    from probes.states import forget_states

    try:
        yield
    finally:
        if not keep:
            forget_states()
