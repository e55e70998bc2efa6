"""The four panels of docs/scaling.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.scaling import SHARE, Curve, Scaling

_INK, _LINE, _KNEE = "#1f2d3d", "#2f6f9f", "#c0392b"
_FAINT = "#c9d1d9"


def draw(scaling: Scaling, machine: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = {
        "font.size": 9,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with plt.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK}):
        figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
        for axis, curve in zip(axes.flat[:3], scaling.curves, strict=True):
            _curve(axis, curve)
        _crowd(axes.flat[3], scaling)
        figure.suptitle("What a step costs the sidecar", fontsize=12, fontweight="bold", x=0.01, ha="left")
        figure.text(
            0.01,
            -0.03,
            "4 tap points x 64 rows x 4096 bf16, 64 directions each, by the ring, unless the axis says otherwise.\n"
            f"{machine['cpu']}, {machine['cores']} cores; bars are 95 % intervals.",
            fontsize=8,
            color="#5c6b7a",
        )
        figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white", metadata={"Software": None})
        plt.close(figure)


def _curve(axis: Any, curve: Curve) -> None:
    base, each = curve.line
    ms = [us / 1e3 for us in curve.us]
    spans = [[m - low / 1e3 for m, (low, _) in zip(ms, curve.intervals, strict=True)]]
    spans.append([high / 1e3 - m for m, (_, high) in zip(ms, curve.intervals, strict=True)])
    ends = [0, curve.x[-1]]
    axis.plot(ends, [(base + each * x) / 1e3 for x in ends], color=_LINE, linewidth=1.2)
    axis.errorbar(curve.x, ms, yerr=spans, fmt="o", color=_INK, ecolor=_LINE, markersize=4, elinewidth=1)
    axis.set_title(
        f"{base / 1e3:.2f} ms + {each / 1e3:.3f} ms for each {curve.unit}   (R² {curve.r2:.3f})", fontsize=9, loc="left"
    )
    axis.set_xlabel(f"{curve.unit}s" if curve.unit == "tap point" else f"{curve.unit}s at each tap point")
    axis.set_ylabel("worker CPU per step, ms")
    _from_zero(axis)


def _crowd(axis: Any, scaling: Scaling) -> None:
    taps = [one.taps for one in scaling.crowds]
    axis.plot(taps, [one.p99_ms for one in scaling.crowds], "o-", color=_INK, markersize=4, linewidth=1.2)
    axis.plot(taps, [one.p50_ms for one in scaling.crowds], "o-", color=_LINE, markersize=4, linewidth=1.2)
    last = scaling.crowds[-1]
    for name, height, colour in (("p99", last.p99_ms, _INK), ("p50", last.p50_ms, _LINE)):
        axis.annotate(name, (last.taps, height), xytext=(6, -3), textcoords="offset points", color=colour, fontsize=9)
    knee = scaling.knee
    if knee is not None:
        axis.axvline(knee.taps, color=_KNEE, linewidth=1, linestyle="--")
        told = f"knee: the worker is\nbusy {knee.busy:.0%} of the time"
        right = knee.taps < taps[-1] / 2
        place: Any = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (5 if right else -5, 0),
            "textcoords": "offset points",
        }
        axis.annotate(
            told, (knee.taps, 0.97), **place, ha="left" if right else "right", va="top", color=_KNEE, fontsize=8
        )
    axis.set_title(f"taps at random moments, each {SHARE:.0%} of a core's steps", fontsize=9, loc="left")
    axis.set_xlabel("connected taps")
    axis.set_ylabel("verdict after, ms")
    axis.set_xticks(taps)
    _from_zero(axis)
    axis.set_yscale("log")
    axis.set_ylim(bottom=1)
    axis.yaxis.set_major_formatter("{x:g}")


def _from_zero(axis: Any) -> None:
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(color=_FAINT, linewidth=0.4)
    axis.set_axisbelow(True)
