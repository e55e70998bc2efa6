"""Tokens per second that one core observes, for models of two sizes: measured, and written into docs/sizing.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers import GrpcPeer, RingPeer
from bench.rounds import Contender, alternate, cpus
from bench.row import Row, median_interval
from bench.serving import Served, serving_plan
from bench.steps import Shape, Steps

_DIRECTIONS, _ROWS = 64, 64
MODELS = {"8B": 4096, "70B": 8192}  # widths; 32 and 80 layers
TAPS = (1, 2, 4, 8)
_WAYS = {"ring": RingPeer, "gRPC": GrpcPeer}
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens per CPU-second, both processes together, with the 95 % interval."""

    model: str
    taps: int
    mode: str
    way: str
    tokens: float
    interval: tuple[float, float]


def measure_all(*, short: bool = False) -> list[Size]:
    rounds, count = (3, 8) if short else (6, 24)
    sizes = []
    for model, width in list(MODELS.items())[: 1 if short else None]:
        for taps in (4,) if short else TAPS:
            with serving_plan(width, taps, _DIRECTIONS) as served:
                sizes += _plan(served, model, width, taps, rounds, count)
    return sizes


def rows_of(sizes: Sequence[Size]) -> list[Row]:
    """The table's part of it."""
    return [
        Row(
            f"tokens/s per core, {one.model}, {one.taps} tap points, {one.mode}, by {one.way}",
            one.tokens,
            interval=one.interval,
            note="absolute, of this machine; both processes; 64 rows a step, 64 directions a tap point",
        )
        for one in sizes
    ]


def write_page(sizes: Sequence[Size], machine: dict[str, object], page: Path) -> None:
    """Put the table between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    flags = ", ".join(map(str, machine["flags"])) if isinstance(machine["flags"], list) else ""
    told = f"Measured {machine['measured']} on {machine['cpu']}, {machine['cores']} cores ({flags}), Python {machine['python']}."
    page.write_text(f"{before}{_BEGIN}\n{told}\n\n{_table(sizes)}\n{_END}{after}", encoding="utf-8")


def _table(sizes: Sequence[Size]) -> str:
    columns = [(mode, way) for mode in ("raw", "projected") for way in _WAYS]
    found = {(one.model, one.taps, one.mode, one.way): one.tokens for one in sizes}
    lines = [
        "| model | tap points | " + " | ".join(f"{mode}, {way}" for mode, way in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for model, taps in dict.fromkeys((one.model, one.taps) for one in sizes):
        figures = (_rounded(found[model, taps, *column]) for column in columns)
        lines.append(f"| {model} (D={MODELS[model]}) | {taps} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _rounded(tokens: float) -> str:
    """Two digits: the third changes from run to run."""
    return f"{float(f'{tokens:.2g}'):,.0f}"


def _plan(served: Served, model: str, width: int, taps: int, rounds: int, count: int) -> list[Size]:
    shapes = {"raw": Shape(taps, _ROWS, width), "projected": Shape(taps, _ROWS, _DIRECTIONS + 1, projected=True)}
    pids = (served.control_pid, served.worker_pid)
    sizes = []
    for way, kind in _WAYS.items():
        with kind(served.address, width, engine=way) as peer:
            contenders = {
                mode: Contender(peer, Steps(shape, engine=way, variety=2), pids, count).round
                for mode, shape in shapes.items()
            }
            for mode, made in alternate(contenders, rounds).items():
                tokens, interval = median_interval([_ROWS / value for value in cpus(made)])
                sizes.append(Size(model, taps, mode, way, tokens, interval))
    return sizes
