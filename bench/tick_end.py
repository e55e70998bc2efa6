"""How long a tick's end keeps the hot worker: whoever waits for a verdict then waits so much longer."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

import numpy as np

from bench.monitored import CIRCUITS, TOKENS, Monitored, plan, shipped
from bench.row import Row, median_interval
from bench.streams import TICK_S

_SLICES, _SESSIONS = 8, 4096
_STEPS = 64  # a tick: 1,024 sessions, so that the table is full after four ticks
_WARM = 6


def measure(ticks: int) -> Iterator[Row]:
    """By the clock, in ms. What may come at once counts at once: the tick closes, and the control process comes for it."""
    made = Monitored(plan(shipped(), _SLICES), _SLICES, _SESSIONS)
    gc.collect()
    gc.disable()  # as in the worker, which collects where nobody waits
    try:
        spent_ms = np.array([_end(made, tick) for tick in range(1, _WARM + ticks + 1)])[_WARM:]
    finally:
        gc.enable()
    closing, handing, computing = (f"{np.median(spent_ms[:, at]):.1f}" for at in (0, 1, 2))
    whole = spent_ms[:, :2].sum(axis=1)
    median, interval = median_interval(whole)
    where = f"{CIRCUITS} circuits x {_SLICES} slices, as shipped"
    note = f"of {ticks} ticks with {_SESSIONS:,} sessions remembered"
    yield Row(f"ms for which a tick's end stops the worker, the longest, {where}", float(whole.max()), note=note)
    note += f"; closing it {closing}, handing it to the control process {handing}; CPU {computing}"
    yield Row(f"ms for which a tick's end stops the worker, the median, {where}", median, interval=interval, note=note)


def _end(made: Monitored, tick: int) -> tuple[float, float, float]:
    """ms for closing, for handing over, and of CPU in both: what is more, others had."""
    made.traffic(_STEPS, TOKENS)
    memory = os.memfd_create("bench-ticks", os.MFD_CLOEXEC)
    try:
        times, begun = [time.perf_counter()], time.thread_time()
        made.monitor.look(tick * TICK_S)
        times.append(time.perf_counter())
        made.hand_over(memory, tick - 1)
        times.append(time.perf_counter())
        computed = time.thread_time() - begun
    finally:
        os.close(memory)
    closing, handing = np.diff(times) * 1e3
    return float(closing), float(handing), computed * 1e3
