"""``probes validate CIRCUIT``: a draft of `probes discover`, put to the test on pairs that did not choose its nodes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars

if TYPE_CHECKING:
    from probes.circuits.manifest import CircuitManifest

MARKER = "draft.json"  # `probes.circuits.draft.DRAFT`, whose module is not light enough for --help


def add(group: Any) -> None:
    group.add_argument(
        "--pairs",
        metavar="PAIRS",
        help="other pairs than those of the discovery, as there: a file, or a set such as induction:48:1",
    )
    group.add_argument("--without", metavar="PAIRS", help="the discovery's own: none of them is used again")
    group.add_argument("--chat", action="store_true", default=None, help="prompts of --pairs are users' messages")
    group.add_argument(
        "--traffic", type=Path, help="texts that do not call for the behaviour, one a line; default: everyday chats"
    )
    group.add_argument(
        "--about", type=Path, help="YAML: description, behaviour, severity (page or ticket), version, licence, k"
    )
    group.add_argument(
        "--share", type=float, help="of the behaviour that a node carries alone, to belong to the circuit (0.1)"
    )
    group.add_argument("--into", type=Path, help="where the artifact and its report go; default: DRAFT itself")


def run(arguments: argparse.Namespace) -> int:
    from probes.activations.model import open_model, prepared
    from probes.circuits.draft import read_draft
    from probes.circuits.reporting.page import write_report
    from probes.circuits.validation.bench import Settings
    from probes.circuits.validation.claim import claim_of, read_about
    from probes.circuits.validation.validate import validate_circuit

    draft = read_draft(arguments.folder)
    folder: Path = arguments.into or arguments.folder
    with bars() as shown:
        task = shown.add_task("reading the model", total=None)
        dtype: Any = draft.model.dtype
        lab = open_model(prepared(arguments.model, shown), dtype)
        claim = claim_of(
            draft,
            lab,
            bars=shown,
            chat=bool(arguments.chat),
            without=arguments.without,
            pairs=arguments.pairs,
            traffic=arguments.traffic,
            share=arguments.share,
            about=read_about(arguments.about),
        )
        given = {} if arguments.randoms is None else {"randoms": arguments.randoms}
        settings = Settings(seed=arguments.seed, told=lambda text: shown.update(task, description=text), **given)
        found = validate_circuit(lab, claim, folder, settings)
    write_report(found, folder)
    _show(found, folder)
    return 0


def _show(found: CircuitManifest, folder: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for gate in found.gates:
        console.print(f"{'passed' if gate.passed else 'FAILED'}  {gate.name}: {gate.text}", markup=False)
    nodes = f"{len(found.parts)} nodes, {len(found.watched)} of them watched"
    console.print(
        f"{folder}: {found.name}, {nodes}; evidence: {found.evidence.value}, {found.severity.value}", markup=False
    )
    console.print("What it does not show is told in its report.html.")
