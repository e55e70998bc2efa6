"""``probes control``: positive controls, without which a tap point cannot prove that its hook sits right."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from probes.commands.bars import bars
from probes.errors import LabError


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
    control.add_argument("--limit", type=int, default=200, metavar="N", help="at most N texts (default: %(default)s)")
    control.add_argument(
        "--into", type=Path, required=True, metavar="FOLDER", help="of artifacts: one sub-folder for each control"
    )
    control.set_defaults(run=_control)


def _control(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.activations.model import open_model, prepared
    from probes.build_control import ControlRecipe, build_control, everyday_chats
    from probes.data.columns import Columns
    from probes.data.reading import Sources, load_texts
    from probes.states import forget_states
    from probes.table import artifact_table

    sources = Sources(tuple(arguments.data), columns=Columns(text=arguments.text), negative_only=True)
    texts = [one.text for one in load_texts(sources).texts][: arguments.limit]
    with bars() as shown:
        lab = open_model(prepared(arguments.model, shown))
        recipes = [ControlRecipe(layer) for layer in _layers(arguments.layers, lab.identity.layers)]
        try:
            chats = everyday_chats(lab, shown)
            made = [build_control(one, lab, arguments.into / one.name, shown, chats, texts) for one in recipes]
        finally:
            forget_states()
    Console().print(artifact_table(made))
    return 0


def _layers(told: str, layers: int) -> list[int]:
    try:
        wanted = [int(one) for one in told.split(",")]
    except ValueError:
        raise LabError(f"--layers {told}: want numbers, such as 8,14") from None
    for layer in wanted:
        if not 0 <= layer < layers:
            raise LabError(f"--layers {layer}: the model has blocks 0 to {layers - 1}")
    return wanted
