"""Readouts of nodes, and the score over them: fitted on tokens at which the circuit was at work, and on traffic without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.circuits.manifest import ENERGY_COLUMNS, Readout, ReadoutKind, Score
from probes.circuits.nodes import Node
from probes.circuits.watching import of_nobody
from probes.circuits.weighing import Moved, weigh
from probes.errors import LabError
from probes.kinds.logistic import fit_pooled
from sidecar.circuits.activity import Reader
from sidecar.circuits.circuit import BINS, Bank
from sidecar.circuits.circuit import Circuit as LiveCircuit
from sidecar.circuits.circuit import Node as LiveNode
from sidecar.types import FloatArray, IndexArray, TapPoint

Array = npt.NDArray[np.float64]
States = Mapping[TapPoint, npt.NDArray[np.floating]]
QUIET = 0.95  # share of traffic without the circuit that is below theta, and below a node's own point of activity
_ENOUGH = 0.9  # of a head's energy on engaged tokens, that its columns must hold
_STRENGTH = 0.1  # of the logistic score, scikit-learn's C: activities of one circuit rise and fall together
_MARGIN = 0.05  # of the range of scores seen, on both sides of it
_NEARLY_ALL = 0.999


@dataclass(frozen=True, slots=True)
class Look:
    """One node and how it is read. columns: float32 [width, k], zero outside the node; k is 0 for a head's built-in norm."""

    node: Node
    kind: ReadoutKind
    columns: FloatArray


@dataclass(frozen=True, slots=True)
class Sight:
    """Readouts with their scales and weights, ready for a manifest."""

    readouts: tuple[Readout, ...]  # of the looks, in their order
    score: Score


def energy(node: Node, span: slice, engaged: Array, columns: int | None = None) -> Look:
    """Log ||U'z||^2 with U the top right-singular vectors of what the head writes, rows [P, width] on engaged tokens.

    columns: how many, 0 for the head's built-in norm; None for as few, up to 8, as hold nine tenths of the energy.
    """
    own = engaged[:, span].astype(np.float64)
    _, values, vectors = np.linalg.svd(own, full_matrices=False)
    if columns is None:
        held = np.cumsum(values**2) / max(float((values**2).sum()), np.finfo(float).tiny)
        columns = min(int(np.searchsorted(held, _ENOUGH)) + 1, ENERGY_COLUMNS, len(values))
    wide = np.zeros((engaged.shape[1], columns), np.float32)
    # The sign of a singular vector is a matter of chance, and an energy does not know it: one sign for the same bytes.
    signs = np.sign(vectors[:columns, np.abs(vectors[:columns]).argmax(axis=1)].diagonal())
    wide[span] = (vectors[:columns] * signs[:, None]).T
    return Look(node, ReadoutKind.ENERGY, wide)


def mass_mean(node: Node, span: slice, engaged: Array, idle: Array) -> Look:
    """u.h with u the difference of the two means, each coordinate over its variance; rows [P, width] and [T, width]."""
    own, other = engaged[:, span].astype(np.float64), idle[:, span].astype(np.float64)
    scatter = (own.var(axis=0) + other.var(axis=0)) / 2
    scatter[scatter <= 1e-12 * max(float(scatter.max()), 1e-30)] = np.inf
    return _direction(node, span, engaged.shape[1], (own.mean(axis=0) - other.mean(axis=0)) / scatter)


def logistic(node: Node, span: slice, engaged: Array, idle: Array, strength: float = 0.01) -> Look:
    """u.h with u of a logistic regression, both sides weighing the same; strength: scikit-learn's C."""
    features = np.concatenate([engaged[:, span], idle[:, span]]).astype(np.float64)
    labels = np.arange(len(features)) < len(engaged)
    found = fit_pooled(features, labels, _even(labels), strength)
    return _direction(node, span, engaged.shape[1], found.slopes[:, 0])


def index(node: Node, span: slice, width: int, coordinate: int) -> Look:
    """One coordinate of the node as it is: a neuron, or a feature."""
    wide = np.zeros((width, 1), np.float32)
    wide[span.start + coordinate] = 1
    return Look(node, ReadoutKind.INDEX, wide)


def raw(looks: Sequence[Look], states: States, heads: int) -> Array:
    """What the looks say of rows [T, width] of each tap point, [N, T], before any scale: by the service's own arithmetic."""
    told: list[FloatArray] = []
    nodes: list[LiveNode] = []
    at = 0
    for look in looks:
        rows = states[look.node.where].astype(np.float32)
        own = rows[:, look.node.span(rows.shape[1], heads)]
        norm = not look.columns.shape[1]
        told.append(np.einsum("td,td->t", own, own)[:, None] if norm else rows @ look.columns)
        nodes.append(_live(look, at, told[-1].shape[1]))
        at += told[-1].shape[1]
    one = LiveCircuit("looks", "", "", tuple(nodes), (0.0,) * len(nodes), 0.0, 0.0, -1.0, 1.0)
    found = Reader(Bank((one,))).read(of_nobody(np.concatenate(told, axis=1)))
    if not found.sound.all():
        raise LabError("a node's reading is not a finite number")
    return found.nodes.astype(np.float64)


def score(engaged: Array, idle: Array, groups: IndexArray, looks: Sequence[Look], moved: Moved) -> Sight:
    """Scales, weights and theta from raw readings: [N, P] on engaged tokens, [N, T] on traffic that does not use the circuit.

    groups: which text each of the T tokens is of. Scales and theta are of every other text; the shares that are told are of the
    other half, and of every other engaged token. moved: what ablations do to the readings, on engaged tokens of the first half.
    """
    fit, held = groups % 2 == 0, groups % 2 == 1
    if not (fit.any() and held.any()) or engaged.shape[1] < 2:
        raise LabError("a score wants two engaged tokens and two texts of traffic at least: one to fit, one to measure")
    mu, sigma = idle[:, fit].mean(axis=1), idle[:, fit].std(axis=1)
    sigma[sigma <= 1e-6 * (1 + np.abs(mu))] = 1.0
    own, other = ((values - mu[:, None]) / sigma[:, None] for values in (engaged, idle))
    labels = np.repeat([True, False], [own[:, ::2].shape[1], int(fit.sum())])
    features = np.concatenate([own[:, ::2], other[:, fit]], axis=1).T
    telling = fit_pooled(features, labels, _even(labels), _STRENGTH).slopes[:, 0]
    weights = weigh(moved, sigma, telling)
    active = np.quantile(other[:, fit], QUIET, axis=1)
    readouts = _readouts(looks, mu, sigma, active, weights)
    return Sight(readouts, _score(weights @ own, weights @ other, fit, held))


def _readouts(looks: Sequence[Look], mu: Array, sigma: Array, active: Array, weights: Array) -> tuple[Readout, ...]:
    taken: dict[TapPoint, int] = {}
    found = []
    for number, look in enumerate(looks):
        columns = look.columns.shape[1]
        first = taken.get(look.node.where, 0) if columns else 0
        taken[look.node.where] = taken.get(look.node.where, 0) + columns
        numbers = {"mu": mu, "sigma": sigma, "active": active, "weight": weights}
        values = {name: float(each[number]) for name, each in numbers.items()}
        found.append(Readout(kind=look.kind, first=first, columns=columns, **values))
    return tuple(found)


def _score(own: Array, other: Array, fit: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_]) -> Score:
    theta = float(np.quantile(other[fit], QUIET, method="higher"))
    low, high = frozen_range(np.concatenate([own, other]), theta)
    return Score(
        bias=0.0,
        theta=theta,
        low=low,
        high=high,
        traffic_share=float((other[held] > theta).mean()),
        traffic_tokens=int(held.sum()),
        engaged_share=float((own[1::2] > theta).mean()),
        engaged_tokens=len(own[1::2]),
    )


def frozen_range(scores: Array, theta: float) -> tuple[float, float]:
    """Range of 64 bins of one width over nearly all scores and a margin, moved so that theta is an edge between two of them.

    Bins of one width cost an addition and a product a token to find; bins of equal counts would cost a search.

    >>> low, high = frozen_range(np.linspace(-1, 3, 1000), 1.05)
    >>> at = (1.05 - low) / (high - low) * 64
    >>> low < -1 and high > 3 and abs(at - round(at)) < 1e-9
    True
    """
    lowest, highest = (float(one) for one in np.quantile(scores, [1 - _NEARLY_ALL, _NEARLY_ALL]))
    lowest, highest = min(lowest, theta - 1e-6), max(highest, theta + 1e-6)
    margin = _MARGIN * (highest - lowest)
    step = (highest - lowest + 2 * margin) / (BINS - 1)
    below = math.ceil((theta - lowest + margin) / step)
    return theta - below * step, theta + (BINS - below) * step


def _direction(node: Node, span: slice, width: int, slope: Array) -> Look:
    length = float(np.linalg.norm(slope))
    if not (math.isfinite(length) and length > 0):
        raise LabError(f"{node.name}: its rows are the same whether the circuit is at work or not")
    wide = np.zeros((width, 1), np.float32)
    wide[span, 0] = slope / length
    return Look(node, ReadoutKind.DIRECTION, wide)


def _live(look: Look, at: int, columns: int) -> LiveNode:
    if look.kind is not ReadoutKind.ENERGY:
        return LiveNode.direction(look.node.name, at)
    if not look.columns.shape[1]:
        return LiveNode.norm(look.node.name, at)
    return LiveNode.energy(look.node.name, range(at, at + columns))


def _even(labels: npt.NDArray[np.bool_]) -> Array:
    """Weights of rows under which both sides weigh the same, one a row on average."""
    positives = int(labels.sum())
    found: Array = np.where(labels, 1 / positives, 1 / (len(labels) - positives)) * len(labels) / 2
    return found
