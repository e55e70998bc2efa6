"""Circuits for a terminal: what each is, on what evidence, and what keeps it from more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probes.circuits.findings import per_cent
from probes.circuits.manifest import CircuitManifest
from probes.circuits.replacing import Ablation
from probes.circuits.validation.gates import of_kind

if TYPE_CHECKING:
    from rich.table import Table


def circuit_table(manifests: Sequence[CircuitManifest]) -> Table:
    """One row a circuit. Left without its heads: F under resample ablation; of all its nodes, if it has none."""
    from rich.table import Table

    table = Table(
        "circuit",
        "version",
        "nodes",
        "watched",
        "left without its heads",
        "does alone",
        "evidence",
        "may",
        "failed gates",
    )
    for one in manifests:
        resample = None if one.findings is None else of_kind(one.findings, Ablation.RESAMPLE)
        table.add_row(
            one.name,
            one.version,
            f"{len(one.parts)}",
            f"{len(one.watched)}",
            "" if resample is None else per_cent(resample.necessity.left),
            "" if resample is None else per_cent(resample.faithfulness),
            one.evidence.value,
            "be shown" if one.findings is None or one.failed else one.severity.value,
            ", ".join(one.failed) if one.findings is not None else "not validated",
        )
    return table
