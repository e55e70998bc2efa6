"""Validate a circuit on one model: fit its readouts, take it and other nodes away, and let the gates say what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from probes.activations.model import LabModel
from probes.circuits.artifact import Circuit, save_circuit
from probes.circuits.choosing import acting, looks
from probes.circuits.findings import RANDOM_SETS, AblationFinding, Findings, ReadoutValidity, Stability
from probes.circuits.manifest import FOR_PAGES, CircuitManifest, Severity
from probes.circuits.nodes import Node
from probes.circuits.pairs import pairs_digest
from probes.circuits.readouts import Look, raw, score
from probes.circuits.replacing import Ablation
from probes.circuits.running import Decoder
from probes.circuits.usual import Usual, usual
from probes.circuits.validation.ablating import Ablated
from probes.circuits.validation.claim import Claim
from probes.circuits.validation.drafting import Made, draft
from probes.circuits.validation.edges import edges
from probes.circuits.validation.gates import FEWEST_RANDOMS, gates
from probes.circuits.validation.measures import RESAMPLES, Behaviour, curve, jaccard, minimality, necessity
from probes.circuits.validation.readout import validity
from probes.circuits.validation.traffic import AT_WORK, Idle, idle
from probes.circuits.watching import read
from probes.errors import LabError
from probes.manifest.findings import GateResult
from sidecar.types import Evidence, FloatArray, TapPoint

Array = npt.NDArray[np.float64]
States: TypeAlias = Mapping[TapPoint, FloatArray]
# Gets rows on engaged tokens and on traffic, every other of the one and texts of the other; returns how the circuit is read.
Looker: TypeAlias = Callable[[States, States], Sequence[Look]]
Told: TypeAlias = Callable[[str], None]
METRIC = "log sum exp of the right answers' logits less that of the wrong ones'"


@dataclass(frozen=True, slots=True)
class Settings:
    """randoms: random node sets to compare with. readout_pairs: engaged pairs on which every other node is tried on the score."""

    randoms: int = 24
    readout_pairs: int = 16
    seed: int = 0
    told: Told = field(default=lambda _text: None)

    def check(self) -> None:
        """Raises LabError for what could not work."""
        if not FEWEST_RANDOMS <= self.randoms <= RANDOM_SETS:
            raise LabError(
                f"from {FEWEST_RANDOMS} random sets on one in twenty can be told from chance; at most {RANDOM_SETS}"
            )
        if self.readout_pairs < 1:
            raise LabError("the readouts want a pair at least")


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
    settings.check()
    bench = _Bench.of(lab, claim, settings)
    drafted = bench.read(look, also)
    found = bench.findings(drafted)
    about = drafted.circuit.manifest
    return save_circuit(folder, _finished(about, found, gates(found, about.score)), drafted.circuit.columns)


@dataclass(frozen=True, slots=True)
class _Drafted:
    """The circuit with readouts fitted and nothing shown yet, and its scores on traffic without it, [T]."""

    circuit: Circuit
    idle_scores: Array


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything that is asked again and again while one circuit is validated."""

    lab: LabModel
    claim: Claim
    settings: Settings
    decoder: Decoder
    ablated: Mapping[Ablation, Ablated]
    behaviours: Mapping[Ablation, Behaviour]
    engaged: list[int]  # pairs at whose last token the circuit is at work

    @classmethod
    def of(cls, lab: LabModel, claim: Claim, settings: Settings) -> _Bench:
        decoder = Decoder(lab.model)
        ablated, behaviours = {}, {}
        for kind in Ablation:
            settings.told(f"{kind.value} ablation on {len(claim.pairs)} pairs")
            ablated[kind] = Ablated(decoder, claim.pairs, kind, claim.ranked)
            behaviours[kind] = Behaviour(ablated[kind], claim.ranked, settings.seed)
        engaged = _engaged(behaviours[Ablation.RESAMPLE], claim.chosen.nodes)
        return cls(lab, claim, settings, decoder, ablated, behaviours, engaged)

    def read(self, look: Looker | None, also: Sequence[TapPoint]) -> _Drafted:
        self.settings.told("reading engaged tokens and traffic")
        nodes = self.claim.chosen.nodes
        usual_at = self._usual_at()
        points = sorted({*(node.where for node in nodes), *also, *usual_at})
        engaged = self._rows(frozenset(), points, self.engaged)
        # Beside traffic the pairs' own words where it is not at work: else a readout of what they are about would do as well.
        texts = [*self.claim.traffic, *(pair.clean for pair in self.claim.pairs)]
        quiet = idle(self.decoder, texts, acting(nodes), points)
        make = look or (lambda own, other: looks(acting(nodes), own, other, self.decoder.heads))
        chosen = tuple(make({point: rows[::2] for point, rows in engaged.items()}, quiet.half(0)))
        own, other = (raw(chosen, states, self.decoder.heads) for states in (engaged, quiet.rows))
        made = Made(
            chosen,
            score(own, other, quiet.texts, chosen),
            next((self._usual(where, quiet, chosen) for where in usual_at), None),
            (len(self.engaged), len(quiet.texts)),
            {point: rows.shape[1] for point, rows in quiet.rows.items()},
        )
        circuit = draft(self.lab, self.claim, made, self.decoder.heads)
        return _Drafted(circuit, read(circuit, quiet.rows).scores[0])

    def _usual_at(self) -> list[TapPoint]:
        """The residual stream at the circuit's last block, if a basis is wanted."""
        last = max(node.where.layer for node in self.claim.chosen.nodes)
        return [TapPoint(last)] if self.claim.basis else []

    def _usual(self, where: TapPoint, quiet: Idle, chosen: Sequence[Look]) -> Usual:
        before = sum(look.columns.shape[1] for look in chosen if look.node.where == where)
        return usual(where, *quiet.everything(where), self.claim.basis, before)

    def findings(self, drafted: _Drafted) -> Findings:
        claim, resample = self.claim, self.behaviours[Ablation.RESAMPLE]
        nodes = claim.chosen.nodes
        ablations = tuple(self._ablation(kind) for kind in Ablation)
        self.settings.told("every node's part, and faithfulness over sizes")
        parts, sizes = minimality(resample, nodes), curve(resample, claim.ranked)
        self.settings.told(f"the score, with each of {len(claim.ranked) - len(nodes)} other nodes ablated")
        valid = self._validity(drafted)
        return Findings(
            metric=METRIC,
            acting="heads" if acting(nodes)[0].head is not None else "nodes",
            pairs=len(claim.pairs),
            pairs_digest=pairs_digest(claim.pairs),
            traffic=f"{claim.traffic_name}, and the pairs' own words, wherever it is not at work",
            universe=len(claim.ranked),
            sites=tuple(sorted({node.where.site.value for node in claim.ranked})),
            ablations=ablations,
            nodes=parts,
            edges=edges(self.ablated[Ablation.RESAMPLE], nodes, self.decoder.heads),
            curve=sizes,
            validity=valid,
            stability=self._stability(),
        )

    def _ablation(self, kind: Ablation) -> AblationFinding:
        self.settings.told(f"{self.settings.randoms} random sets under {kind.value} ablation")
        behaviour, nodes = self.behaviours[kind], self.claim.chosen.nodes
        return AblationFinding(
            kind=kind.value,
            whole=float(behaviour.whole.mean()),
            none=float(behaviour.none.mean()),
            faithfulness=behaviour.faithfulness(nodes),
            completeness=behaviour.completeness(nodes),
            necessity=necessity(behaviour, acting(nodes), nodes, self.settings.randoms, self.settings.seed),
        )

    def _validity(self, drafted: _Drafted) -> ReadoutValidity:
        claim, circuit = self.claim, drafted.circuit
        points = [place.where for place in circuit.manifest.places]
        tried = self.engaged[1::2][: self.settings.readout_pairs]  # the readouts were fitted on the others
        pairs = [claim.pairs[place] for place in tried]
        ablated = Ablated(self.decoder, pairs, Ablation.MEAN, claim.ranked)

        def scores(nodes: frozenset[Node]) -> Array:
            scored: Array = read(circuit, ablated.rows(nodes, points)[1]).scores[0]
            return scored

        others = set(claim.ranked) - set(claim.chosen.nodes)
        return validity(scores, acting(claim.chosen.nodes), others, drafted.idle_scores)

    def _stability(self) -> Stability | None:
        if self.claim.measured is None:
            return None
        measured, effects = self.claim.measured
        numbers = {node: place for place, node in enumerate(measured)}
        alike = jaccard(effects, [numbers[node] for node in self.claim.chosen.nodes], self.settings.seed)
        return Stability(resamples=RESAMPLES, jaccard=alike)

    def _rows(
        self, ablated: Collection[Node], points: Sequence[TapPoint], pairs: Sequence[int]
    ) -> dict[TapPoint, FloatArray]:
        _, rows = self.ablated[Ablation.MEAN].rows(ablated, points)
        return {point: states[list(pairs)] for point, states in rows.items()}


def _engaged(behaviour: Behaviour, nodes: Sequence[Node]) -> list[int]:
    """Pairs answered right, and less so by `AT_WORK` nats without the nodes that act. Raises LabError for fewer than 4."""
    at_work = (behaviour.whole > 0) & (behaviour.whole - behaviour.without(acting(nodes)) >= AT_WORK)
    found = np.flatnonzero(at_work).tolist()
    if len(found) < 4:
        raise LabError(
            f"the circuit is at work on {len(found)} of {len(at_work)} pairs: no readout can be fitted on so few"
        )
    return found


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
