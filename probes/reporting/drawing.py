"""One quiet style for every plot, and a figure as SVG that stands inside a page: no fonts, links or clocks from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probes.reporting.html import Html, tag

INK, MUTED, RULE = "#1d2733", "#6b7785", "#d9dfe5"
OWN, OTHER, WARN = "#1f6f8b", "#b4bec8", "#b5532a"  # the probe; what it is compared with; what needs care
LINES = ("#1f6f8b", "#d08c2e", "#6b4c8a", "#3f8f5f", "#a8475a", "#7b8794")
_PIXELS, _FEWEST_PIXELS = 94, 70  # an inch is so wide on the page; where that is too wide, a picture scrolls by itself
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "stethoscope",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_NAMESPACE = re.compile(r'\s+xmlns(:\w+)?="[^"]*"')
_SIZE = re.compile(r'(<svg[^>]*?)\s+width="[^"]*"|(<svg[^>]*?)\s+height="[^"]*"')
_FONT = re.compile(r"font: ([\d.]+)px [^;\"]*")


def figure(name: str, caption: str, draw: Callable[[Any], None], *, width: float = 4.6, height: float = 2.8) -> Html:
    """Draw into one pair of axes, and return it with its caption. name: letters, unique on the page; sizes in inches.

    draw: gets matplotlib's axes. The caption is also what a screen reader says of the picture.
    """
    with _axes(width, height) as (canvas, axes):
        draw(axes)
        told = io.StringIO()
        canvas.savefig(told, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    picture = tag("div", Html(_inline(told.getvalue(), name)), class_="plot", role="img", aria_label=caption)
    # One scale for all of them, so that their letters are of one size.
    sizes = f"max-width: {width * _PIXELS:.0f}px; --least: {width * _FEWEST_PIXELS:.0f}px"
    return tag("figure", picture, tag("figcaption", caption), style=sizes)


def save(path: Path, draw: Callable[[Any], None], *, width: float = 4.6, height: float = 2.8) -> None:
    """The same as a file of its own, on white: PNG or SVG, by the path's ending."""
    from probes.activations.files import whole_file

    with _axes(width, height) as (canvas, axes), whole_file(path) as file:
        draw(axes)
        told = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        canvas.savefig(file, format=path.suffix[1:], dpi=160, facecolor="white", metadata=told)


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    defaults: dict[Any, Any] = dict(mpl.rcParamsDefault)
    with mpl.rc_context(defaults | _STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawn)
        yield drawn, drawn.subplots()


def _inline(svg: str, name: str) -> str:
    """Take out what only a file of its own needs, and give ids that no other picture of the page has."""
    svg = _PROLOGUE.sub("", svg, count=1)
    svg = _NAMESPACE.sub("", _METADATA.sub("", svg)).replace("xlink:href=", "href=")
    svg = _SIZE.sub(lambda found: found[1] or found[2], svg)
    svg = _FONT.sub(r"font: \1px system-ui, sans-serif", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'\bhref="#', f'href="#{name}-', svg)
    return re.sub(r"url\(#", f"url(#{name}-", svg)
