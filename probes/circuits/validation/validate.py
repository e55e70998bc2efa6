"""Validate a circuit on one model: fit its readouts, take it and other nodes away, and let the gates say what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.activations.model import LabModel
from probes.circuits.artifact import save_circuit
from probes.circuits.findings import AblationFinding, Findings, ReadoutValidity, Stability
from probes.circuits.manifest import FOR_PAGES, CircuitManifest, Severity
from probes.circuits.nodes import Node
from probes.circuits.pairs import pairs_digest
from probes.circuits.replacing import Ablation
from probes.circuits.validation.bench import Bench, Settings
from probes.circuits.validation.claim import Claim
from probes.circuits.validation.edges import edges
from probes.circuits.validation.gates import gates
from probes.circuits.validation.measures import RESAMPLES, curve, jaccard, minimality, necessity
from probes.circuits.validation.reading import Drafted, Looker, drafted
from probes.circuits.validation.readout import validity
from probes.circuits.watching import read
from probes.manifest.findings import GateResult
from sidecar.types import Evidence, TapPoint

Array = npt.NDArray[np.float64]
METRIC = "log sum exp of the right answers' logits less that of the wrong ones'"


def validate_circuit(
    lab: LabModel,
    claim: Claim,
    folder: Path,
    settings: Settings,
    look: Looker | None = None,
    also: Sequence[TapPoint] = (),
) -> CircuitManifest:
    """Write the circuit with its findings, gates and evidence to ``folder``, and return its manifest; the same for the same input.

    look: how to read it, from rows at its nodes and at the tap points ``also``; None for `probes.circuits.choosing.looks`.
    Raises LabError if there is nothing to validate.
    """
    bench = Bench.of(lab, claim, settings)
    made = drafted(bench, look, also)
    found = _findings(bench, made)
    about = made.circuit.manifest
    return save_circuit(folder, _finished(about, found, gates(found, about.score)), made.circuit.columns)


def _findings(bench: Bench, made: Drafted) -> Findings:
    claim, resample, told = bench.claim, bench.behaviours[Ablation.RESAMPLE], bench.settings.told
    nodes = claim.chosen.nodes
    ablations = tuple(_ablation(bench, kind) for kind in Ablation)
    told("every node's part, and faithfulness over sizes")
    parts, sizes = minimality(resample, nodes), curve(resample, claim.ranked)
    told(f"the score, with each of {len(bench.outside())} other nodes ablated")
    valid = _validity(bench, made)
    return Findings(
        metric=METRIC,
        acting="heads" if bench.acting[0].head is not None else "nodes",
        pairs=len(claim.pairs),
        pairs_digest=pairs_digest(claim.pairs),
        traffic=f"{claim.traffic_name}, and the pairs' own words, wherever it is not at work",
        universe=len(claim.ranked),
        sites=tuple(sorted({node.where.site.value for node in claim.ranked})),
        ablations=ablations,
        nodes=parts,
        edges=edges(bench.ablated[Ablation.RESAMPLE], nodes, bench.decoder.heads),
        curve=sizes,
        validity=valid,
        stability=_stability(bench),
    )


def _ablation(bench: Bench, kind: Ablation) -> AblationFinding:
    settings, behaviour, nodes = bench.settings, bench.behaviours[kind], bench.claim.chosen.nodes
    settings.told(f"{settings.randoms} random sets under {kind.value} ablation")
    return AblationFinding(
        kind=kind.value,
        whole=float(behaviour.whole.mean()),
        none=float(behaviour.none.mean()),
        faithfulness=behaviour.faithfulness(nodes),
        completeness=behaviour.completeness(nodes),
        necessity=necessity(behaviour, bench.acting, nodes, settings.randoms, settings.seed),
    )


def _validity(bench: Bench, made: Drafted) -> ReadoutValidity:
    points = [place.where for place in made.circuit.manifest.places]
    ablated = bench.half(1)

    def scores(nodes: frozenset[Node]) -> Array:
        scored: Array = read(made.circuit, ablated.rows(nodes, points)[1]).scores[0]
        return scored

    return validity(scores, bench.acting, bench.outside(), made.idle_scores)


def _stability(bench: Bench) -> Stability | None:
    if bench.claim.measured is None:
        return None
    measured, effects = bench.claim.measured
    numbers = {node: place for place, node in enumerate(measured)}
    alike = jaccard(effects, [numbers[node] for node in bench.claim.chosen.nodes], bench.settings.seed)
    return Stability(resamples=RESAMPLES, jaccard=alike)


def _finished(draft: CircuitManifest, found: Findings, passed: Sequence[GateResult]) -> dict[str, Any]:
    """The manifest's fields with what was found. A page that the ablations do not bear out becomes a ticket."""
    needed = all(gate.passed for gate in passed if gate.name != FOR_PAGES)
    agreed = any(gate.passed for gate in passed if gate.name == FOR_PAGES)
    fields = draft.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"schema_", "content_digest"})
    return fields | {
        "findings": found.model_dump(mode="json", exclude_none=True),
        "gates": [gate.model_dump(mode="json") for gate in passed],
        "evidence": (Evidence.USED if needed else Evidence.UNVERIFIED).value,
        "severity": draft.severity.value if agreed else Severity.TICKET.value,
    }
