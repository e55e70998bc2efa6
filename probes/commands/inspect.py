"""``probes inspect``: what artifacts read, where, how well, on what evidence."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from probes.errors import LabError

INSPECT_LIMIT = 1000


def add(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="show what artifacts read, where, how well and on what evidence")
    inspect.add_argument("folder", type=Path, help="an artifact, or a folder with one sub-folder for each")
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.artifact import MANIFEST, Artifact, load_artifact
    from probes.circuits.artifact import FORM, Circuit, load_circuit
    from probes.circuits.table import circuit_table
    from probes.envelope import schema_of
    from probes.registry import Loaded, load_all
    from probes.table import artifact_table
    from sidecar.errors import ArtifactError

    folder: Path = arguments.folder
    try:
        if (folder / MANIFEST).exists():
            load = load_circuit if schema_of(folder, root=folder) == FORM.schema else load_artifact
            found: list[Loaded] = [load(folder, root=folder)]
        else:
            found = list(load_all(folder, limit=INSPECT_LIMIT))
    except ArtifactError as error:
        raise LabError(str(error)) from None
    if circuits := [one.manifest for one in found if isinstance(one, Circuit)]:
        Console().print(circuit_table(circuits))
    if probes := [one.manifest for one in found if isinstance(one, Artifact)]:
        Console().print(artifact_table(probes))
    return 0
