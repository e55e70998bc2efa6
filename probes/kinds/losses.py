"""How wrong the readings of a batch are, and which way they should go: what `descent` follows.

A loss takes readings [t, K] of G texts that lie end to end, their signs (+1 or -1) [G] and weights [G]. It returns the weighted
sum of the texts' losses and its gradient by the readings, [t, K]. A highest value passes its pull on to the rows that it came
from: a subgradient.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from probes.kinds.windows import Spans, Windows

Array = npt.NDArray[np.float64]


class Loss(Protocol):
    def __call__(self, readings: Array, spans: Spans, signs: Array, weights: Array) -> tuple[float, Array]: ...


def log_loss(scores: Array, signs: Array) -> tuple[Array, Array]:
    """-log of the probability of the true class, under probability = sigmoid(score), and its derivative by the score.

    >>> log_loss(np.zeros(1), np.ones(1))[1].tolist()
    [-0.5]
    """
    margins = signs * scores
    losses = np.logaddexp(0.0, -margins)
    return losses, -signs * np.exp(-margins - losses)  # exp(-m) / (1 + exp(-m)), without an overflow


def single(readings: Array, spans: Spans, signs: Array, weights: Array) -> tuple[float, Array]:
    """Each text is one row, and its score that row's reading."""
    del spans
    losses, pulls = log_loss(readings[:, 0], signs)
    return float(weights @ losses), (weights * pulls)[:, None]


class OverTokens:
    """Every window of ``length`` tokens should tell the text's class by its mean reading.

    sharpness: a window weighs as exp(sharpness * mean reading) within its text, so that a text's most telling windows teach the
    most; at 0 all weigh the same. Window means and softmax-weighted loss: arXiv 2601.04603.
    """

    def __init__(self, length: int, sharpness: float) -> None:
        self._length, self._sharpness = length, sharpness

    def __call__(self, readings: Array, spans: Spans, signs: Array, weights: Array) -> tuple[float, Array]:
        windows = spans.windows(self._length)
        values = windows.means(readings[:, 0])
        losses, pulls = log_loss(values, signs[windows.owner])
        shares = _softmax(self._sharpness * values, windows)
        of_text = np.add.reduceat(shares * losses, windows.starts)  # [G]
        slopes = shares * (pulls + self._sharpness * (losses - of_text[windows.owner]))
        return float(weights @ of_text), windows.spread(weights[windows.owner] * slopes)[:, None]


def _softmax(values: Array, windows: Windows) -> Array:
    shares: Array = np.exp(values - np.maximum.reduceat(values, windows.starts)[windows.owner])
    shares /= np.add.reduceat(shares, windows.starts)[windows.owner]
    return shares


def attention(readings: Array, spans: Spans, signs: Array, weights: Array) -> tuple[float, Array]:
    """Score: values averaged with weights exp(query), over the whole text; columns value, query."""
    values, queries = readings.T
    shares = _softmax(queries, spans.windows(1))  # each row is a window of its own
    scores = np.add.reduceat(shares * values, spans.starts)
    losses, pulls = log_loss(scores, signs)
    slopes = shares * (weights * pulls)[spans.owner]
    return float(weights @ losses), np.stack([slopes, slopes * (values - scores[spans.owner])], axis=1)


class RollingAttention:
    """Score: the highest attention over ``length`` rows in a row (arXiv 2601.11516); columns value, query."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, readings: Array, spans: Spans, signs: Array, weights: Array) -> tuple[float, Array]:
        windows = spans.windows(self._length)
        cells, inside = windows.cells()
        values, queries = readings[cells, 0], np.where(inside, readings[cells, 1], -np.inf)  # [W, length]
        shares = np.exp(queries - queries.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        scores, best = windows.best((shares * values).sum(axis=1))
        losses, pulls = log_loss(scores, signs)
        slopes = shares[best] * (weights * pulls)[:, None]  # [G, length]
        found = np.zeros_like(readings)
        here = inside[best]
        found[cells[best][here], 0] = slopes[here]
        found[cells[best][here], 1] = (slopes * (values[best] - scores[:, None]))[here]
        return float(weights @ losses), found


def multimax(readings: Array, spans: Spans, signs: Array, weights: Array) -> tuple[float, Array]:
    """Score: the sum over heads of the highest reading (arXiv 2601.11516); one column a head. Equals share the pull."""
    highest = np.maximum.reduceat(readings, spans.starts, axis=0)  # [G, H]
    losses, pulls = log_loss(highest.sum(axis=1), signs)
    hits = readings == highest[spans.owner]
    shares = hits / np.add.reduceat(hits, spans.starts, axis=0, dtype=np.float64)[spans.owner]
    return float(weights @ losses), shares * (weights * pulls)[spans.owner][:, None]
