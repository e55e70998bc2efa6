"""An engine in a process of its own, without a model: the real recorder and client, steps at a given rate, every id in a journal.

Takes its settings as JSON on the command line and orders on standard input ("phase NAME RATE", "end"), tells what each phase
cost the engine's thread as JSON on standard output. The journal outlives a kill: each line is one write to a file.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap import client as tap_client
from sidecar.tap.batch import BatchMessage
from sidecar.tap.client import TapClient
from sidecar.tap.link import Link
from sidecar.tap.plan import PointPlan
from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.step import Request, RequestInfo
from sidecar.types import Mode, ModelIdentity
from tests.tap.samples import NumpyStates

UNDER_WAY = 8  # steps of an engine that goes as fast as it is served: enough to keep every slot full
SEGMENTS = 4
OUTCOME = {
    ingest_pb2.OUTCOME_SCORED: "scored",
    ingest_pb2.OUTCOME_DROPPED: "dropped",
    ingest_pb2.OUTCOME_REJECTED: "rejected",
}


class Journal:
    """Lines of what happened to which batch, with the machine's monotonic clock. Thread-safe: each line is one write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.settled = 0  # steps that were answered or dropped; written by two threads, used for pacing only
        self.moved = threading.Condition()

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, (words[0], time.monotonic_ns(), *words[1:]))) + "\n").encode())

    def settle(self, steps: int) -> None:
        with self.moved:
            self.settled += steps
            self.moved.notify()


JOURNAL: Journal


class JournalLink(Link):
    """The client's link, listened to."""

    def book(self, message: BatchMessage) -> None:
        super().book(message)
        JOURNAL.write("sent", message.batch_id)

    def answer(self, result: ingest_pb2.StepResult) -> None:
        reason = result.reason or "-"
        JOURNAL.write(
            "answer", result.batch_id, OUTCOME[result.outcome], reason, result.plan_generation, scores(result)
        )
        super().answer(result)
        JOURNAL.settle(1)

    def close(self) -> None:
        with self._changed:
            lost = len(self._unanswered)
        super().close()
        JOURNAL.settle(lost)


def scores(result: ingest_pb2.StepResult) -> str:
    """What the verdicts read, as one word: readings of one generation look like one another."""
    read = {f"{one.name}={one.score:.5f}" for verdict in result.verdicts for one in verdict.signals}
    return ",".join(sorted(read)) or "-"


@dataclass
class Phase:
    """What the tap added to the steps of one phase, on the engine's own thread."""

    name: str
    rate: float
    wall_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    begun_s: float = field(default_factory=time.monotonic)
    rss_bytes: int = 0  # when it ended

    def report(self) -> dict[str, Any]:
        told: dict[str, Any] = {"name": self.name, "rate": self.rate, "steps": len(self.wall_ns)}
        told |= {"rss_bytes": self.rss_bytes}
        for name, values in (("wall_us", self.wall_ns), ("cpu_us", self.cpu_ns)):
            if values:
                low, high, highest = np.percentile(values, (50, 99, 99.9)) / 1e3
                told[name] = {"p50": low, "p99": high, "p99.9": highest, "max": max(values) / 1e3}
        return told


class Engine:
    """Steps of ``rows`` rows at every tap point, a few requests each, through the recorder as an adapter's hooks do it."""

    def __init__(self, client: TapClient, rows: int, width: int, life_steps: int) -> None:
        self.client = client
        self._life_steps = life_steps
        self.recorder = Recorder(client)
        self.made = self.captured = 0
        self._states = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
        self._each = rows // SEGMENTS
        self._life = 0
        self._requests: list[Request] = []

    def step(self, phase: Phase) -> None:
        if self.made % self._life_steps == 0:
            self.recorder.finish(self._requests)
            self._life += 1
            names = (f"{self.client.engine_id}.{self._life}.{number}" for number in range(SEGMENTS))
            self._requests = [self.recorder.request(RequestInfo(name), self._each) for name in names]
        first = self.made % self._life_steps * self._each
        self.made += 1
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        self.recorder.begin(
            Span(request, row * self._each, first, self._each) for row, request in enumerate(self._requests)
        )
        step = self.recorder.open
        if step is not None and step.wanted:
            for point in self.client.settings.tap_points:
                plan = None if step.plan is None else step.plan.points[point]
                self.recorder.keep(point, self._kept(step.rows, plan))
        self.recorder.end()
        phase.cpu_ns.append(time.thread_time_ns() - cpu_ns)
        phase.wall_ns.append(time.perf_counter_ns() - wall_ns)
        if step is not None and step.rows:
            self.captured += 1
        else:  # no request of it was chosen: there is nothing to wait for
            JOURNAL.settle(1)

    def _kept(self, chosen: list[int], plan: PointPlan | None) -> NumpyStates:
        """A copy of the rows, as a hook makes it, or what a projecting one makes of them."""
        rows: npt.NDArray[np.float32] = self._states[chosen]
        if plan is None:
            return NumpyStates(rows)
        norms = np.einsum("td,td->t", rows, rows)
        readings = np.column_stack((rows @ plan.directions, norms))
        return NumpyStates(readings.astype(np.float32), projected=True)


class Orders:
    """What the parent asks for: read on a thread, so that no step waits for it."""

    def __init__(self) -> None:
        self.phase: tuple[str, float] | None = ("start", 0.0)
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            word, *rest = line.split()
            if word == "end":
                break
            self.phase = (rest[0], float(rest[1]))
        self.ended.set()


def drive(engine: Engine, orders: Orders) -> list[Phase]:
    """Steps until the end is asked for; a rate of 0 is as fast as the sidecar answers, below 0 is none at all."""
    phases: list[Phase] = []
    due_s, dropped, told_s = time.monotonic(), 0, 0.0
    asked = None
    while not orders.ended.is_set():
        if orders.phase is not asked:
            asked = orders.phase
            assert asked is not None
            _close(phases)
            phases.append(Phase(*asked))
            JOURNAL.write("phase", asked[0])
            due_s = time.monotonic()
        due_s = _pace(engine, phases[-1].rate, due_s, orders)
        if phases[-1].rate < 0:
            continue
        engine.step(phases[-1])
        now = engine.client.counts().dropped
        if now > dropped and time.monotonic() - told_s > 0.02:
            told_s = time.monotonic()
            JOURNAL.write("drop", now - dropped)
            JOURNAL.settle(now - dropped)
            dropped = now
    _close(phases)
    return phases


def _close(phases: list[Phase]) -> None:
    if phases:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        phases[-1].rss_bytes = pages * resource.getpagesize()


def _pace(engine: Engine, rate: float, due_s: float, orders: Orders) -> float:
    """Wait for the next step's turn; when the one after it is due. A late engine catches up, by a tenth of a second at most."""
    now_s = time.monotonic()
    if rate > 0:
        orders.ended.wait(max(0.0, due_s - now_s))
        return max(due_s, now_s - 0.1) + 1 / rate
    if rate < 0 or not engine.client.connected:  # who is not answered must not take the machine from the sidecar
        orders.ended.wait(0.005)
    else:
        with JOURNAL.moved:
            JOURNAL.moved.wait_for(lambda: engine.made - JOURNAL.settled < UNDER_WAY, 0.05)
    return now_s


def main() -> None:
    global JOURNAL  # noqa: PLW0603 - the one thing that both sides of the client write to
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("stethoscope.tap").addHandler(handler)
    logging.getLogger("stethoscope.tap").setLevel(logging.INFO)
    settings = json.loads(sys.argv[1])
    JOURNAL = Journal(settings["journal"])
    vars(tap_client)["Link"] = JournalLink
    client = TapClient(settings["address"], ModelIdentity(**settings["model"]), engine_id=settings["engine"])
    engine = Engine(client, settings["rows"], settings["model"]["width"], settings["life_steps"])
    orders = Orders()
    client.start()
    while settings["wait"] and not _ready(client) and not orders.ended.wait(0.01):
        pass
    print("ready", flush=True)
    phases = drive(engine, orders)
    client.stop(settings["stop_s"])
    counts = client.counts()
    report = {
        "phases": [phase.report() for phase in phases],
        "captured": engine.captured,
        **{name: getattr(counts, name) for name in ("sent", "ok", "refused", "unknown", "dropped")},
        "errors": client.errors,
        "log": told,
    }
    print(json.dumps(report), flush=True)


def _ready(client: TapClient) -> bool:
    planned = client.settings.mode is not Mode.PROJECTED or client.plan is not None
    return client.connected and bool(client.settings.tap_points) and planned


if __name__ == "__main__":
    main()
