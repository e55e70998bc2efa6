"""``probes export`` and ``probes import``: directions to and from other tools' files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from probes.errors import LabError

# Written here as well as in probes.release.transfer: --help must not wait for numpy.
FORMS = ("sklearn", "safetensors", "npz", "steering")
_WINDOW = 10


def add(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write an artifact as another tool's file",
        epilog="Readings stay as they are, before calibration; the manifest has that.",
    )
    export.add_argument("artifact", type=Path, metavar="ARTIFACT")
    export.add_argument("--to", choices=FORMS, required=True, help=_FORMS_TEXT)
    export.add_argument("--into", type=Path, required=True, metavar="FILE")
    export.add_argument("--scale", type=float, help="length of the steering vector (default: 1)")
    export.set_defaults(run=_export)
    imported = commands.add_parser(
        "import",
        help="make a draft of another tool's probe, to be calibrated and evaluated",
        epilog="Its readings must be of the same states: the same tap point, and rows before any scaling that the file leaves out.",
    )
    imported.add_argument("file", type=Path, metavar="FILE")
    imported.add_argument("--from", dest="form", choices=FORMS, required=True, help=_FORMS_TEXT)
    imported.add_argument(
        "--acts", type=Path, required=True, metavar="ACTS", help="texts to calibrate and evaluate it on"
    )
    imported.add_argument("--into", type=Path, required=True, metavar="DRAFT")
    imported.add_argument("--name", required=True, help="small letters, digits and _")
    imported.add_argument(
        "--tap-point",
        metavar="NAME[,NAME]",
        help="like blocks.14.resid_post; if the file does not say; several whose rows stand side by side",
    )
    imported.add_argument("--aggregation", help="mean, last, ema, ...; if the file does not say")
    imported.add_argument("--window", type=int, help=f"tokens, for aggregations that have one (default: {_WINDOW})")
    imported.add_argument("--seed", type=int, default=0, help="divides the texts (default: %(default)s)")
    imported.set_defaults(run=_import)


_FORMS_TEXT = "sklearn: by skops; safetensors: tensors w, b; npz: hulder's; steering: a GGUF control vector"


def _export(arguments: argparse.Namespace) -> int:
    from probes.release.transfer import export_probe

    export_probe(arguments.artifact, arguments.to, arguments.into, scale=arguments.scale)
    _say(f"{arguments.into}: written")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from probes.activations.store import ActivationStore
    from probes.release.plain import parse_where
    from probes.release.transfer import Origin, import_probe
    from probes.stages import named

    everywhere = parse_where(arguments.file, arguments.tap_point)
    origin = Origin(arguments.name, everywhere, _aggregation(arguments), arguments.seed)
    made = import_probe(arguments.file, arguments.form, ActivationStore.open(arguments.acts), origin, arguments.into)
    _say(f"{arguments.into}: {made.name} at {named(made.everywhere)}; calibrate and evaluate it before you believe it")
    return 0


def _aggregation(arguments: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from probes.manifest import Aggregation

    if arguments.aggregation is None:
        if arguments.window is not None:
            raise LabError("--window goes with --aggregation")
        return None
    try:
        return Aggregation(kind=arguments.aggregation, window=_WINDOW if arguments.window is None else arguments.window)
    except ValidationError as error:
        raise LabError(f"--aggregation {arguments.aggregation}: {error.errors()[0]['msg']}") from None


def _say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)
