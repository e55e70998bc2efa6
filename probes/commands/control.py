"""``probes control``: positive controls, without which a tap point cannot prove that its hook sits right."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars

if TYPE_CHECKING:
    from probes.data.reading import Loaded


def add(commands: Any) -> None:
    control = commands.add_parser(
        "control",
        help="make a positive control for each tapped layer",
        description="A direction that reads near 0 on every row of its block, whatever the text, and off on rows of the blocks "
        "around it. Made from everyday prompts with the model's own answers, and from texts like those that it will be sent.",
    )
    control.add_argument("--model", type=Path, required=True, help="a local transformers folder or a .gguf file")
    control.add_argument(
        "--data", action="append", required=True, metavar="FILE", help="texts, as for `probes collect`"
    )
    control.add_argument("--text", default="", metavar="COLUMN", help="default: text, prompt or sentence")
    control.add_argument("--layers", required=True, help='such as "14" or "8,14"')
    control.add_argument(
        "--limit", type=int, default=200, metavar="N", help="at most N texts of each file (default: %(default)s)"
    )
    control.add_argument("--licence", default="not stated", help="of the texts; it goes into the artifact")
    control.add_argument(
        "--into", type=Path, required=True, metavar="FOLDER", help="of artifacts: one sub-folder for each control"
    )
    control.set_defaults(run=_control)


def _control(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.activations.layers import parse_layers
    from probes.activations.model import open_model, prepared
    from probes.build_control import ControlRecipe, build_control
    from probes.control_texts import fed_halves
    from probes.table import artifact_table

    loaded = _texts(arguments)
    with bars() as shown:
        lab = open_model(prepared(arguments.model, shown))
        recipes = [ControlRecipe(layer) for layer in parse_layers(arguments.layers, lab.identity.layers)]
        halves = fed_halves(lab, loaded, arguments.licence, shown)
        made = [build_control(one, lab, halves, arguments.into / one.name, shown) for one in recipes]
    Console().print(artifact_table(made))
    return 0


def _texts(arguments: argparse.Namespace) -> Loaded:
    from probes.data.columns import Columns
    from probes.data.reading import Sources, load_texts

    columns = Columns(text=arguments.text)
    return load_texts(Sources(tuple(arguments.data), columns=columns, negative_only=True, limit=arguments.limit))
