"""What may have happened to a model: nothing, or one of the faults, each in several ways that are laid down here before any run.

Runs of a condition go round these ways, so that they differ in the fault and not in their traffic alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from probes.circuits.manifest import CircuitManifest
from probes.circuits.nodes import Node
from sidecar.types import Site
from tests.circuits.zoo.acting import Instead, acting
from tests.circuits.zoo.rounding import ROUNDINGS, rounded
from tests.circuits.zoo.texts import FOREIGN, KINDS, PLAIN, REPEATING, Texts
from tests.circuits.zoo.tuning import tuned

SOUND, ABLATED, SCALED, INT8, TUNED = VARIANTS = ("sound", "circuit_ablated", "head_scaled", "int8", "fine_tuned")
_ALONE = 2  # heads that are ablated without the rest of the circuit, the strongest ones
_HEADS, _FACTORS, _SCALINGS = 3, (0.9, 1.1), 5
_TUNED_ON = ((FOREIGN, REPEATING), (FOREIGN,), (REPEATING,), (PLAIN,), KINDS)
# Gets the sound model; while it is open, what it gives is the changed one.
Change = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Fault:
    """variant: what has happened; way: how, in words, as results tell it. Of a sound model there is one way."""

    variant: str
    way: str = ""


SOUND_MODEL = Fault(SOUND)


@dataclass(frozen=True, slots=True)
class Material:
    """What faults are made of. rate: of fine-tuning on these texts."""

    circuit: CircuitManifest
    texts: Texts
    rate: float


def faults_of(variant: str, material: Material) -> dict[Fault, Change]:
    """Every way of it, in the order in which runs take them."""
    return {Fault(variant, way): change for way, change in _WAYS[variant](material).items()}


def heads_in(circuit: CircuitManifest) -> list[Node]:
    """The circuit's heads, the one that carries most of the behaviour first."""
    heads = [one for one in circuit.nodes if one.what.where.site is Site.ATTN_HEADS]
    return [one.what for one in sorted(heads, key=lambda one: -one.effect)]


def _sound(_material: Material) -> dict[str, Change]:
    return {"": nullcontext}


def _ablations(material: Material) -> dict[str, Change]:
    """All of the circuit at zero, at its mean and at a quarter, and each of the strongest heads alone at zero."""
    parts, plain = material.circuit.parts, material.texts[PLAIN]
    of_all = {
        "all nodes at zero": Instead(0.0),
        "all nodes at their means": Instead(0.0, plain),
        "all nodes x 0.25": Instead(0.25),
    }
    ways: dict[str, Change] = {way: partial(acting, nodes=parts, instead=one) for way, one in of_all.items()}
    for head in heads_in(material.circuit)[:_ALONE]:
        ways[f"{head.name} at zero"] = partial(acting, nodes=(head,), instead=Instead(0.0))
    return ways


def _scalings(material: Material) -> dict[str, Change]:
    """A tenth less of one head, of each of the strongest by turns, and then a tenth more."""
    heads = heads_in(material.circuit)[:_HEADS]
    pairs = ((head, factor) for factor in _FACTORS for head in heads)
    return {
        f"{head.name} x {factor}": partial(acting, nodes=(head,), instead=Instead(factor))
        for head, factor in islice(pairs, _SCALINGS)
    }


def _roundings(_material: Material) -> dict[str, Change]:
    return {f"a scale for {of}": partial(rounded, rounding=one) for of, one in ROUNDINGS.items()}


def _tunings(material: Material) -> dict[str, Change]:
    """On other texts each time, drawn in another order."""
    ways: dict[str, Change] = {}
    for number, kinds in enumerate(_TUNED_ON):
        texts = [text for kind in kinds for text in material.texts[kind]]
        ways[f"on {' and '.join(kinds)}"] = partial(tuned, texts=texts, rate=material.rate, seed=number)
    return ways


_WAYS: Mapping[str, Callable[[Material], dict[str, Change]]] = {
    SOUND: _sound,
    ABLATED: _ablations,
    SCALED: _scalings,
    INT8: _roundings,
    TUNED: _tunings,
}
