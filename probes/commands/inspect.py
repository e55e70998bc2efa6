"""``probes inspect``: what artifacts read, where, how well, on what evidence."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from probes.errors import LabError

INSPECT_LIMIT = 1000


def add(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="show what artifacts read, where, how well and on what evidence")
    inspect.add_argument("folder", type=Path, help="an artifact, or a folder with one sub-folder per artifact")
    inspect.set_defaults(run=_inspect)


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
        raise LabError(str(error)) from None
    Console().print(artifact_table([artifact.manifest for artifact in artifacts]))
    return 0
