"""Causal tracing as a picture: three bands over the same positions, the residual stream, the attention and the MLPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probes.circuits.draft import DraftCircuit, Trace
from probes.reporting.drawing import INK, MUTED, figure, save
from probes.reporting.html import Html
from probes.reporting.plots import plain

TRACING = "tracing"
_BANDS = {"resid_post": "residual stream", "attn_heads": "attention", "mlp_out": "MLP"}
_COLUMN, _ROW = 0.3, 0.09  # inches of a position and of a block
_BETWEEN = 2  # blocks' room between bands
_LEAST_BAND = 1.1  # inches, however few blocks there are
_LONGEST = 14  # letters of a token


def tracing_figure(draft: DraftCircuit) -> Html | None:
    """For a page; None if nothing was traced."""
    if draft.trace is None:
        return None
    width, height = _size(draft.trace)
    return figure(TRACING, _caption(draft), _drawing(draft, draft.trace), width=width, height=height)


def write_tracing(draft: DraftCircuit, folder: Path) -> tuple[Path, ...]:
    """As ``tracing.png`` and ``tracing.svg``; none if nothing was traced."""
    if draft.trace is None:
        return ()
    width, height = _size(draft.trace)
    paths = tuple(folder / f"{TRACING}.{form}" for form in ("png", "svg"))
    for path in paths:
        save(path, _drawing(draft, draft.trace), width=width, height=height)
    return paths


def _size(trace: Trace) -> tuple[float, float]:
    layers = sum(map(len, trace.restored.values()))
    rows = max(layers * _ROW, _LEAST_BAND * len(trace.restored))
    return 2.0 + _COLUMN * (len(trace.tokens) - _first(trace)), 1.6 + rows


def _first(trace: Trace) -> int:
    """The first position that is shown: the one before the first at which anything differs."""
    differ = [one != other for one, other in zip(trace.tokens, trace.corrupt_tokens, strict=True)]
    moved = np.any([np.abs(rows).max(axis=0) > 0 for rows in map(np.array, trace.restored.values())], axis=0)
    return max(0, int(np.argmax(np.array(differ) | moved)) - 1)


def _caption(draft: DraftCircuit) -> str:
    pairs = draft.trace.pairs if draft.trace is not None else 0
    over = "one pair" if pairs == 1 else f"{pairs} pairs; the first one's words are shown"
    return (
        f"{draft.name}: the share of the behaviour that comes back when, in the corrupt run, one position (across) at one block "
        f"(up) is set to what it is in the clean run; {over}. Words in brackets are the corrupt prompt's."
    )


def _drawing(draft: DraftCircuit, trace: Trace) -> Any:
    def draw(axes: Any) -> None:
        first = _first(trace)
        bottom, ticks = 0.0, []
        for name in reversed(_BANDS):
            if name not in trace.restored:
                continue
            rows = np.array(trace.restored[name])[:, first:]
            columns = np.arange(rows.shape[1] + 1)
            shown = axes.pcolormesh(
                columns, bottom + np.arange(len(rows) + 1), rows, cmap="RdBu", vmin=-1, vmax=1, rasterized=True
            )
            axes.text(0, bottom + len(rows) + 0.25, _BANDS[name], color=INK, fontsize=9, va="bottom")
            ticks += [(bottom + layer + 0.5, str(layer)) for layer in _shown(len(rows))]
            bottom += len(rows) + _BETWEEN * max(1, len(rows) / 15)
        axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=7)
        words = [_word(*both) for both in zip(trace.tokens[first:], trace.corrupt_tokens[first:], strict=True)]
        axes.set_xticks(np.arange(len(words)) + 0.5, words, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_ylabel("block")
        axes.set_title(plain(draft.name), loc="left", fontsize=10, color=INK, pad=22)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        bar = axes.figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.02)
        bar.set_label("share of the behaviour restored", color=MUTED, fontsize=8)
        bar.ax.tick_params(labelsize=7, length=0)
        bar.outline.set_visible(False)

    return draw


def _shown(layers: int) -> range:
    return range(0, layers, max(1, -(-layers // 6)))


def _word(token: str, other: str) -> str:
    return _plainly(token) if token == other else f"{_plainly(token)} [{_plainly(other)}]"


def _plainly(token: str) -> str:
    text = plain(token.replace("\n", "\u21b5").strip()) or "\u00b7"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026"
