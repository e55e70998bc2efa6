"""What is watched of a circuit: nodes that are read off columns of the plan, and a score over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sidecar.types import IndexArray

Floats = npt.NDArray[np.float64]
SLICES = 8  # routes, languages or position buckets that are told apart; what is more is one slice together
BINS = 64  # of a score histogram
TOKENS = (1, 2, 4, 8)  # how many sampled tokens of a session may make its bet
OTHER = "other"
WHOLE = "all"  # the one slice where none is told apart


@dataclass(frozen=True, slots=True)
class Node:
    """One readout: ``constant + sum(linear * r + square * (r - centre)^2)`` over its columns r, its logarithm if ``log``.

    What the sketch sees is (that - mu) / sigma; above ``active`` the node counts as active.

    >>> Node.energy("blocks.3.head.5", columns=(4, 5)).square
    (1.0, 1.0)
    """

    name: str
    columns: tuple[int, ...]
    linear: tuple[float, ...]
    square: tuple[float, ...]
    centre: tuple[float, ...]
    constant: float = 0.0
    log: bool = False
    mu: float = 0.0
    sigma: float = 1.0
    active: float = 0.0

    def __post_init__(self) -> None:
        widths = {len(self.columns), len(self.linear), len(self.square), len(self.centre)}
        if widths != {len(self.columns)} or not self.columns or not self.sigma > 0:
            raise ValueError(f"{self.name}: want a factor for each of its columns, and sigma above 0")

    @classmethod
    def direction(cls, name: str, column: int, *, mu: float = 0.0, sigma: float = 1.0, active: float = 0.0) -> Node:
        """(u.h - mu) / sigma. A neuron or a feature (an index) is read the same way, off its own column."""
        return cls(name, (column,), (1.0,), (0.0,), (0.0,), mu=mu, sigma=sigma, active=active)

    @classmethod
    def energy(
        cls, name: str, columns: Sequence[int], *, mu: float = 0.0, sigma: float = 1.0, active: float = 0.0
    ) -> Node:
        """The logarithm of the squared length in the columns of U. An ablated head reads as the floor, not as nothing."""
        n = len(columns)
        return cls(
            name, tuple(columns), (0.0,) * n, (1.0,) * n, (0.0,) * n, log=True, mu=mu, sigma=sigma, active=active
        )

    @classmethod
    def norm(cls, name: str, column: int, *, mu: float = 0.0, sigma: float = 1.0, active: float = 0.0) -> Node:
        """The energy of all of a head, whose built-in column holds the squared norm already."""
        return cls(name, (column,), (1.0,), (0.0,), (0.0,), log=True, mu=mu, sigma=sigma, active=active)

    @classmethod
    def inside(cls, name: str, basis: Sequence[int], centre: Floats, variance: Floats, *, limit: float) -> Node:
        """T^2 in a frozen basis: how unusual the row is among what the spec was made on. active: above log(limit)."""
        n = len(basis)
        square, middle = tuple((1.0 / variance).tolist()), tuple(centre.tolist())
        return cls(name, tuple(basis), (0.0,) * n, square, middle, log=True, active=float(np.log(limit)))

    @classmethod
    def outside(
        cls, name: str, basis: Sequence[int], centre: Floats, mean: int, norm: int, length: float, *, limit: float
    ) -> Node:
        """SPE: the squared length of h - m outside the orthonormal basis P. active: above log(limit).

        basis: columns of P; centre: P^T m; mean: the column of m; norm: that of the squared norm; length: |m|^2.
        """
        n = len(basis)
        return cls(
            name,
            (*basis, mean, norm),
            (0.0,) * n + (-2.0, 1.0),
            (-1.0,) * n + (0.0, 0.0),
            (*centre.tolist(), 0.0, 0.0),
            constant=length,
            log=True,
            active=float(np.log(limit)),
        )


@dataclass(frozen=True, slots=True)
class Circuit:
    """A validated circuit as it is watched: S = sum(weights * a) + bias; a row is engaged if S > theta.

    low, high: the frozen range of the score histogram; its outermost bins take what lies beyond. tokens: how many sampled
    tokens make a session's bet.
    """

    name: str
    model_hash: str
    spec_hash: str
    nodes: tuple[Node, ...]
    weights: tuple[float, ...]
    bias: float
    theta: float
    low: float
    high: float
    tokens: int = 4

    def __post_init__(self) -> None:
        if not self.nodes or len(self.weights) != len(self.nodes):
            raise ValueError(f"{self.name}: want a weight for each of its nodes, 0 for one that is only watched")
        if self.tokens not in TOKENS or not self.low < self.high:
            raise ValueError(f"{self.name}: want tokens of {TOKENS}, and a range of scores")


@dataclass(frozen=True)
class Bank:
    """Every circuit of a model side by side, as arrays: nodes in the order of their circuits.

    slices: the names told apart, at most 7, and then `OTHER` for all else. Raises ValueError for circuits of two models.
    """

    circuits: tuple[Circuit, ...]
    named_slices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.named_slices) >= SLICES or len({*self.named_slices, OTHER}) != len(self.named_slices) + 1:
            raise ValueError(f"at most {SLICES - 1} slices, each once, none called {OTHER}")
        if len({one.name for one in self.circuits}) != len(self.circuits) or not self.circuits:
            raise ValueError("want circuits, each under a name of its own")
        if len({one.model_hash for one in self.circuits}) > 1:
            raise ValueError("circuits of two models are not read off the same rows")

    @property
    def slices(self) -> tuple[str, ...]:
        return (*self.named_slices, OTHER) if self.named_slices else (WHOLE,)

    def slice_of(self, name: str) -> int:
        """Its place among the slices; that of `OTHER` if it is not told apart."""
        return self.named_slices.index(name) if name in self.named_slices else len(self.named_slices)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:  # N
        return tuple(node for circuit in self.circuits for node in circuit.nodes)

    @cached_property
    def node_starts(self) -> IndexArray:
        """[C], where each circuit's nodes begin."""
        sizes = [len(one.nodes) for one in self.circuits]
        return np.cumsum([0, *sizes[:-1]])

    @cached_property
    def circuit_of(self) -> IndexArray:
        """[N], the circuit that a node belongs to."""
        return np.repeat(np.arange(len(self.circuits)), [len(one.nodes) for one in self.circuits])

    @cached_property
    def pairs(self) -> tuple[IndexArray, IndexArray]:
        """Every two nodes of a circuit, and each with itself: ([P], [P]) places of nodes, circuit by circuit."""
        found = [np.triu_indices(len(one.nodes)) for one in self.circuits]
        starts = self.node_starts
        first, second = zip(*((i + at, j + at) for (i, j), at in zip(found, starts, strict=True)), strict=True)
        return np.concatenate(first), np.concatenate(second)
