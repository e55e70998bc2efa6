"""The ``probes`` command: make the shipped artifacts, look at any artifact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

INSPECT_LIMIT = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what it says, 1 if an artifact or a package stood in the way, 2 for a wrong call."""
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="probes", description="The lab: train, test and inspect probes.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="show what artifacts read, where, how well and on what evidence")
    inspect.add_argument("folder", type=Path, help="an artifact, or a folder with one sub-folder per artifact")
    inspect.set_defaults(run=_inspect)
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
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.artifact import MANIFEST, load_artifact
    from probes.registry import load_folder
    from probes.table import artifact_table
    from sidecar.errors import ArtifactError

    folder: Path = arguments.folder
    try:
        if (folder / MANIFEST).exists():
            artifacts = [load_artifact(folder, root=folder)]
        else:
            artifacts = list(load_folder(folder, limit=INSPECT_LIMIT))
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    Console().print(artifact_table([artifact.manifest for artifact in artifacts]))
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from probes.recipes import RECIPES, ZOO

    unknown = [name for name in arguments.names if name not in RECIPES]
    if unknown:
        print(f"no recipe for {', '.join(unknown)}; there are: {', '.join(RECIPES)}", file=sys.stderr)
        return 2
    return _in_the_lab(arguments, arguments.names or list(RECIPES), arguments.into or ZOO)


def _in_the_lab(arguments: argparse.Namespace, names: Sequence[str], into: Path) -> int:
    from rich.console import Console

    from probes.smollm2 import ModelNotInstalledError
    from probes.table import artifact_table
    from probes.zoo_build import build_all

    try:
        with _bars() as bars, _states(keep=arguments.keep_states):
            manifests = build_all(names, into, bars)
    except ModelNotInstalledError as error:
        print(error, file=sys.stderr)
        return 1
    Console().print(artifact_table(manifests))
    return 0


def _survey(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.recipes import SURVEY
    from probes.smollm2 import ModelNotInstalledError
    from probes.survey import run_survey, survey_table, write_survey

    try:
        with _bars() as bars, _states(keep=arguments.keep_states):
            found = run_survey(bars)
    except ModelNotInstalledError as error:
        print(error, file=sys.stderr)
        return 1
    write_survey(found, SURVEY)
    Console().print(survey_table(found))
    return 0


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bars:
        yield bars


@contextmanager
def _states(*, keep: bool) -> Iterator[None]:
    """Delete the collected states at the end (about a gigabyte), unless they are to be used again."""
    from probes.states import forget_states

    try:
        yield
    finally:
        if not keep:
            forget_states()


if __name__ == "__main__":
    sys.exit(main())
