"""``probes discover``: which of a model's heads and MLPs carry a behaviour."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars

if TYPE_CHECKING:
    from probes.circuits.draft import DraftCircuit

_EPILOG = """PAIRS is a file, JSON lines or CSV, with the columns clean, corrupt, answer and wrong: prompts of one length in tokens
of which the clean one calls for the behaviour, and answers of which the first tokens count (see docs/circuits.md); or the name of
a set that is made here and how many of it, such as induction:16 (also grounding, refusal). A command that was cut off goes on
where it was when it is given again."""
_SHOWN = 12


def add(commands: Any) -> None:
    discover = commands.add_parser(
        "discover", help="patch a model's nodes: which of them carry a behaviour?", epilog=_EPILOG
    )
    discover.add_argument("model", type=Path, metavar="MODEL", help="a local transformers folder or a .gguf file")
    discover.add_argument(
        "pairs", metavar="PAIRS", help="a file of contrast pairs, or a set that is made here, such as induction:16"
    )
    discover.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the draft circuit goes")
    discover.add_argument("--name", help="of the circuit; default: that of the pairs")
    discover.add_argument("--model-dtype", choices=["float32", "bfloat16"], default="float32")
    discover.add_argument(
        "--chat", action="store_true", help="prompts are users' messages, fed through the chat template"
    )
    how = discover.add_argument_group("how")
    how.add_argument(
        "--budget-s", type=float, default=600.0, help="CPU seconds that patching every node may take (%(default)g)"
    )
    how.add_argument(
        "--method",
        choices=["auto", "exact", "prefilter"],
        default="auto",
        help="every node, or those that gradients point to and random ones; auto: every node if the budget allows",
    )
    how.add_argument("--steps", type=int, default=5, help="of the gradients' path (%(default)s)")
    how.add_argument("--gradients", action="store_true", help="follow gradients also where every node is patched")
    how.add_argument("--randoms", type=int, default=59, help="random nodes beside the prefilter's (%(default)s)")
    how.add_argument(
        "--important", type=float, default=0.05, help="share of the behaviour that makes a node important (%(default)g)"
    )
    how.add_argument(
        "--trace", type=int, default=1, metavar="N", help="pairs that are traced over positions (%(default)s)"
    )
    how.add_argument("--seed", type=int, default=0)
    discover.set_defaults(run=_discover)


def _discover(arguments: argparse.Namespace) -> int:
    from probes.activations.model import open_model, prepared
    from probes.circuits.behaviours import find_pairs
    from probes.circuits.discovery import discover
    from probes.circuits.drafting import Settings
    from probes.circuits.picture import write_tracing

    settings = Settings(
        name=arguments.name or Path(arguments.pairs.partition(":")[0]).stem,
        method=None if arguments.method == "auto" else arguments.method,
        budget_s=arguments.budget_s,
        steps=arguments.steps,
        attribute=arguments.gradients,
        randoms=arguments.randoms,
        important=arguments.important,
        traced=arguments.trace,
        seed=arguments.seed,
    )
    settings.check()
    began_s = time.process_time()
    with bars() as shown:
        lab = open_model(prepared(arguments.model, shown), arguments.model_dtype)
        pairs = find_pairs(arguments.pairs, lab, chat=arguments.chat)
        found = discover(lab, pairs, settings, arguments.out, shown)
    write_tracing(found, arguments.out)
    _show(found, arguments.out, time.process_time() - began_s)
    return 0


def _show(found: DraftCircuit, folder: Path, spent_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    patched = [one for one in found.nodes if one.effect is not None]
    table = Table()
    titles = ["node", "lost without it", "of the behaviour", *(["gradient's estimate"] if found.steps else [])]
    for title in titles:
        table.add_column(title, no_wrap=title == "node")
    for one in patched[:_SHOWN]:
        estimates = [] if one.attribution is None else [f"{one.attribution:+.3f}"]
        table.add_row(one.node, f"{one.effect:+.3f}", f"{(one.effect or 0) / found.gap:+.1%}", *estimates)
    shown = Console()
    shown.print(table)
    shown.print(
        f"{folder}: {len(patched)} of {len(found.nodes)} nodes patched on {found.pairs} pairs; clean {found.clean:+.3f}, corrupt "
        f"{found.corrupt:+.3f}; {len(found.important_nodes)} nodes carry {found.important:.0%} or more; {spent_s:.0f} CPU-s",
        soft_wrap=True,
    )
    if found.pearson is not None:
        shown.print(f"gradients' estimates and effects: Pearson {found.pearson:.2f}")
    if found.missed is not None:
        shown.print(
            f"of {found.missed.random} random nodes beside the prefilter's, {found.missed.important} are important: at most "
            f"{found.missed.at_most:.1%} of those left out, with 95 % confidence",
            soft_wrap=True,
        )
    shown.print(
        "A draft: small sets of nodes may be necessary without being sufficient. `probes validate` puts it to the test."
    )
