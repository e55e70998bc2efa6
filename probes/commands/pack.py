"""``probes pack``: from a draft to an artifact that the sidecar loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    pack = commands.add_parser("pack", help="make an artifact of a draft that passed its gates")
    pack.add_argument("draft", type=Path, metavar="DRAFT", help="calibrated and evaluated; validated if you can")
    pack.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="the artifact")
    pack.add_argument("--version", metavar="X.Y.Z", help="computed against --previous if not given, or 1.0.0")
    pack.add_argument(
        "--previous",
        type=Path,
        metavar="ARTIFACT",
        help="the version before; threshold: patch, training: minor, contract: major",
    )
    pack.add_argument("--licence", default="Apache-2.0", help="of the artifact (default: %(default)s)")
    pack.add_argument(
        "--failed", action="store_true", help="pack it though gates failed; the manifest says so, and why"
    )
    pack.set_defaults(run=_pack)


def _pack(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.release.pack import pack
    from probes.table import artifact_table

    manifest = pack(
        arguments.draft,
        arguments.into,
        version=arguments.version,
        licence=arguments.licence,
        previous=arguments.previous,
        failed=arguments.failed,
    )
    Console().print(artifact_table([manifest]))
    return 0
