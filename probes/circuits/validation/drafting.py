"""A circuit with readouts fitted and nothing shown yet, as the manifest and columns that it will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.activations.model import LabModel
from probes.circuits.artifact import FORM, Circuit
from probes.circuits.manifest import SCHEMA, CircuitNode, Place
from probes.circuits.pairs import pairs_digest
from probes.circuits.readouts import Look, Sight
from probes.circuits.usual import Usual
from probes.circuits.validation.claim import Claim
from sidecar.types import FloatArray, Site, TapPoint

Array = npt.NDArray[np.float64]
Columns = dict[TapPoint, FloatArray]


@dataclass(frozen=True, slots=True)
class Made:
    """How a claim is read. tokens: engaged ones and of traffic, that it was fitted on. widths: of the rows of each tap point."""

    looks: tuple[Look, ...]
    sight: Sight
    usual: Usual | None
    tokens: tuple[int, int]
    widths: Mapping[TapPoint, int]


def draft(lab: LabModel, claim: Claim, made: Made, heads: int) -> Circuit:
    """Raises ArtifactError if what was made is no circuit."""
    nodes = _nodes(claim, made)
    columns = _columns(made)
    fields: dict[str, Any] = {
        **claim.about,
        "schema": SCHEMA,
        "content_digest": "0" * 64,
        "model": lab.binding.model_dump(mode="json", exclude_none=True),
        "width": lab.identity.width,
        "places": [
            one.model_dump(mode="json", exclude_none=True) for one in _places(nodes, columns, made.widths, heads)
        ],
        "nodes": [one.model_dump(mode="json", exclude_none=True) for one in nodes],
        "score": made.sight.score.model_dump(mode="json"),
        "training_data": {
            "name": f"{made.tokens[0]} of {len(claim.pairs)} pairs, their other words, and {claim.traffic_name}",
            "digest": pairs_digest(claim.pairs),
            "rows": sum(made.tokens),
            "licence": claim.about["licence"],
        },
    }
    if made.usual is not None:
        fields["basis"] = made.usual.about.model_dump(mode="json")
    return Circuit(FORM.validated(fields), columns, "")


def _nodes(claim: Claim, made: Made) -> list[CircuitNode]:
    """The chosen ones, and after them whatever else is looked at."""
    effects = dict(zip(claim.chosen.nodes, claim.chosen.effects, strict=True))
    readouts = {look.node: told for look, told in zip(made.looks, made.sight.readouts, strict=True)}
    others = [look.node for look in made.looks if look.node not in effects]
    return [
        CircuitNode(node=node.name, effect=effects.get(node, 0.0), readout=readouts.get(node))
        for node in [*claim.chosen.nodes, *others]
    ]


def _columns(made: Made) -> Columns:
    parts: dict[TapPoint, list[FloatArray]] = {}
    for look in made.looks:
        if look.columns.shape[1]:
            parts.setdefault(look.node.where, []).append(look.columns)
    if made.usual is not None:
        parts.setdefault(TapPoint.parse(made.usual.about.tap_point), []).append(made.usual.columns)
    return {where: np.concatenate(each, axis=1) for where, each in parts.items()}


def _places(nodes: Sequence[CircuitNode], columns: Columns, widths: Mapping[TapPoint, int], heads: int) -> list[Place]:
    """In order. A place whose nodes want norms alone has no columns."""
    read = {one.what.where for one in nodes if one.readout is not None} | columns.keys()
    return [
        Place(
            tap_point=where.name,
            width=widths[where],
            columns=columns[where].shape[1] if where in columns else 0,
            heads=heads if where.site is Site.ATTN_HEADS else None,
        )
        for where in sorted(read)
    ]
