"""What circuits hold in memory, each bound reached: in the hot worker, and in the control process that fetches and archives."""

from __future__ import annotations

import gc
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bench.monitored import CIRCUITS, NODES, TOKENS, Circuits, Monitored, directions, plan, routes, shipped, watched
from bench.row import Row
from bench.streams import TICK_S
from probes.circuits.manifest import WATCHED
from sidecar.circuits.circuit import Bank
from sidecar.circuits.sketch import LiveSketch
from sidecar.circuits.watch import Watch
from sidecar.clock import ManualClock
from sidecar.config import Circuits as Settings
from sidecar.config import Config
from sidecar.live.keeper import Keeper
from sidecar.live.ticks import KEPT_TICKS
from sidecar.log import Log

_SLICES, _SESSIONS = 8, 4096
_STEPS = 1  # a tick: its 64 rows are of all slices, so that every circuit has news in each
_HISTORY = 256  # ticks of which the control process knows how much could not be read
_MB = 1e6

T = TypeVar("T")
Held = dict[str, float]  # MB by what it is


def live_bytes() -> Iterator[Row]:
    """Of one circuit in one slice: its sketch and its detector, and nothing else lasts."""
    most = f"{WATCHED} nodes, T^2 and SPE, the most that there may be"
    for circuits, what in (
        (directions(), f"{NODES} nodes"),
        (shipped(), f"{NODES} nodes, T^2 and SPE, as shipped"),
        (directions(WATCHED + 2), most),
    ):
        bank = Bank(circuits, routes(_SLICES))
        sketch, watch = LiveSketch(bank, "a", TICK_S), Watch(watched(circuits, _SLICES), TICK_S)
        each = CIRCUITS * _SLICES
        row = Row(f"live bytes of a circuit in a slice, {what}", (sketch.nbytes + watch.nbytes) / each).at_most(2048)
        yield replace(row, note=f"sketch {sketch.nbytes / each:.0f}, detector {watch.nbytes / each:.0f}")


def measure(*, short: bool) -> Iterator[Row]:
    note = f"{CIRCUITS} circuits x {_SLICES} slices, as shipped; {_SESSIONS:,} sessions"
    for what, held in held_mb(shipped(), _HISTORY // 16 if short else _HISTORY).items():
        yield Row(f"MB held by {what}", held, note=note)


def held_mb(circuits: Circuits, history: int = _HISTORY) -> Held:
    """As Python and numpy count their blocks. history: ticks that the control process sees."""
    import pyarrow.parquet  # noqa: F401 - what it takes to be there at all is not what circuits hold

    planned = plan(circuits, _SLICES)
    tracemalloc.start()
    try:
        made, arrays = _grown(lambda: Monitored(planned, _SLICES, _SESSIONS))
        _, sessions = _grown(lambda: made.traffic(TOKENS * _SESSIONS // 64, TOKENS))
        _, ticks = _grown(lambda: _close(made, range(1, KEPT_TICKS + 1)))
        with tempfile.TemporaryDirectory() as folder:
            kept, writing = _control(made, Path(folder), history)
    finally:
        tracemalloc.stop()
    return {
        "the worker: sketches, detectors, table of sessions, and what they work in": arrays - made.values.nbytes / _MB,
        f"the worker: names of {_SESSIONS:,} sessions, traces": sessions,
        f"the worker: {KEPT_TICKS} ticks that nobody has fetched": ticks,
        "the control process: rows of an hour until they are a file, and what of them could not be read": kept,
        "the control process: while it writes that file, besides": writing,
    }


def _close(made: Monitored, ticks: Iterable[int]) -> None:
    for tick in ticks:
        made.traffic(_STEPS, TOKENS)
        made.monitor.look(tick * TICK_S)


def _control(made: Monitored, folder: Path, history: int) -> tuple[float, float]:
    """The most that it holds between two ticks, and the most that it needed at once beyond that."""
    config = Config(circuits=Settings(archive=folder / "archive", slices=routes(_SLICES)))
    clock = ManualClock()
    keeper = Keeper(config, clock, made, lambda _: None, Log(clock))
    made.monitor.ticks.since(KEPT_TICKS)  # those that waited are the worker's
    before, _ = tracemalloc.get_traced_memory()
    most = peak = 0
    for tick in range(KEPT_TICKS + 1, KEPT_TICKS + history + 1):
        _close(made, (tick,))
        tracemalloc.reset_peak()
        keeper.look()
        held, highest = tracemalloc.get_traced_memory()
        most, peak = max(most, held - before), max(peak, highest - before)
    keeper.stop()
    return most / _MB, (peak - most) / _MB


def _grown(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and by how many MB memory is larger afterwards."""
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    made = work()
    gc.collect()
    return made, (tracemalloc.get_traced_memory()[0] - before) / _MB
