"""What a discovery found: a circuit in the making, as one file that says how each number came to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from probes.activations.files import whole_file
from probes.circuits.nodes import Node
from probes.circuits.pairs import Contrast, pairs_digest
from probes.errors import LabError
from probes.manifest.binding import ModelBinding
from probes.manifest.fields import Digest, Finite, Share, Strict, Text
from probes.strictjson import StrictJsonError, parse_strict, pretty

DRAFT = "draft.json"
SCHEMA: Literal["stethoscope.circuit-draft/1"] = "stethoscope.circuit-draft/1"
Array = npt.NDArray[np.float64]
Chosen = Literal["all", "top", "random"]
Method = Literal["exact", "prefilter"]


class NodeEffect(Strict):
    """effect: in the metric's units, what is lost if the node alone puts out what it does on the corrupt prompt; its mean.

    by_pair: the same, pair by pair. Both None for a node that was not patched. attribution: its gradient's estimate (EAP-IG on
    activations). chosen: why it was patched.
    """

    node: Text
    effect: Finite | None
    by_pair: tuple[Finite, ...] | None
    attribution: Finite | None
    chosen: Chosen | None


class Missed(Strict):
    """How many important nodes the prefilter may have left out: of ``random`` nodes drawn from those, ``important`` were.

    at_most: with 95 % confidence no larger share of the nodes left out is important.
    """

    random: Annotated[int, Field(ge=0)]
    important: Annotated[int, Field(ge=0)]
    at_most: Share


class Trace(Strict):
    """Causal tracing over ``pairs`` pairs of one length. tokens: of the first clean prompt, and what the corrupt one has there.

    restored: by site, [block][position], the share of clean less corrupt metric that comes back when, in the corrupt run, this
    position there is set to what it is in the clean run.
    """

    pairs: Annotated[int, Field(ge=1)]
    tokens: tuple[Text, ...]
    corrupt_tokens: tuple[Text, ...]
    restored: dict[str, tuple[tuple[Finite, ...], ...]]


class DraftCircuit(Strict):
    """clean, corrupt: mean metrics of the untouched model. important: the share of clean less corrupt that makes a node important.

    nodes: all of the model's that were asked about, those with the largest effects first, then by attribution. pearson: between
    effects and attributions of the nodes that have both. reuse: whether runs went on from the block that they change.
    """

    schema_: Literal["stethoscope.circuit-draft/1"] = Field(default=SCHEMA, alias="schema")
    name: Text
    model: ModelBinding
    pairs: Annotated[int, Field(ge=1)]
    pairs_digest: Digest
    metric: Text
    clean: Finite
    corrupt: Finite
    method: Method
    steps: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    important: Share
    nodes: Annotated[tuple[NodeEffect, ...], Field(min_length=1)]
    pearson: Finite | None
    missed: Missed | None
    reuse: bool
    trace: Trace | None
    versions: dict[str, Text]

    @property
    def gap(self) -> float:
        """What there is to lose: the mean metric on clean prompts less that on corrupt ones."""
        return self.clean - self.corrupt

    @property
    def measured(self) -> tuple[tuple[Node, ...], Array]:
        """The nodes that were patched, in the model's order, and their effects pair by pair, [N, P]."""
        found = {Node.parse(one.node): one.by_pair for one in self.nodes if one.by_pair is not None}
        ordered = tuple(sorted(found))
        return ordered, np.array([found[node] for node in ordered], dtype=np.float64)

    @property
    def important_nodes(self) -> tuple[Node, ...]:
        """Those that lose, or gain, at least the important share, the strongest first."""
        limit = self.important * abs(self.gap)
        return tuple(Node.parse(one.node) for one in self.nodes if one.effect is not None and abs(one.effect) >= limit)

    def must_be_of(self, pairs: tuple[Contrast, ...], model: ModelBinding) -> None:
        """Raises LabError if it was not found with these pairs, or not on these weights."""
        if self.pairs_digest != pairs_digest(pairs):
            raise LabError(f"{self.name} was found with other pairs")
        if self.model.weights_digest != model.weights_digest:
            raise LabError(f"{self.name} was found on other weights than those of {model.name}")

    def write(self, folder: Path) -> Path:
        """Into ``folder``, which is made; whole or not at all. The same discovery gives the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / DRAFT) as file:
            file.write(pretty(self.model_dump(mode="json", by_alias=True)))
        return folder / DRAFT


def read_draft(folder: Path) -> DraftCircuit:
    """Raises LabError naming the file if there is none, or none of ours."""
    path = folder / DRAFT
    try:
        return DraftCircuit.model_validate(parse_strict(path.read_bytes()))
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    except (StrictJsonError, ValidationError) as error:
        raise LabError(f"{path} is no draft of a circuit: {error}") from None
