"""Rounds of canaries: sent on a schedule, or at once when an alarm wants to know; compared with what was recorded."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sidecar.circuits.canary import Reference, Round, Token, compare, moved
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.errors import ConfigError
from sidecar.live.alarms import Canaries
from sidecar.live.canary_arrivals import Arrivals
from sidecar.live.canary_file import (
    About,
    CanaryFileError,
    Kept,
    in_columns_of,
    read_reference,
    shared_groups,
    write_round,
)
from sidecar.live.canary_prompts import digest_of, prompts_of
from sidecar.live.canary_rows import CanaryRow
from sidecar.live.canary_send import Sender, token_of
from sidecar.live.canary_values import PlanValues, circuit_group, says
from sidecar.log import Level, Log
from sidecar.reading.plan import Plan
from sidecar.snapshot import CanarySnapshot
from sidecar.types import FloatArray

ROUNDS = "canaries"  # the folder of rounds, in the archive
KEPT_ROUNDS = 32
_ARRIVAL_S = 10.0  # after the last answer: the tap sends a step's rows in milliseconds
_LOOK_S = 0.1
_ENGINE_S = 0.25  # between two looks whether there is a plan


class CanaryRunner:
    """A thread of its own between ``start`` and ``stop``. ``take`` is the keeper's; the rest is anybody's.

    plan: the one in force; None as long as no engine is there. start raises ConfigError if prompts, token or reference are unsound.
    """

    def __init__(self, config: Config, clock: Clock, plan: Callable[[], Plan | None], log: Log) -> None:
        self._config = config.canary
        archive = config.circuits.archive
        self._folder = None if archive is None else archive / ROUNDS
        self._clock, self._plan, self._log = clock, plan, log
        self._prompts: tuple[str, ...] = ()
        self._token = ""
        self._known: tuple[About, Reference] | None = None
        self._known_of: int | None = None  # when its file was written, ns
        self._arrivals = Arrivals()
        self._changed = threading.Condition()
        self._asked = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._newest: deque[tuple[int, Round]] = deque(maxlen=4)  # those that were compared, each by its number
        self._uncompared = "nothing was sent yet"  # why the newest round was not compared; empty: it was
        self._counts = {"whole": 0, "partial": 0, "failed": 0, "not_compared": 0}
        self._whole_s: float | None = None
        self.begun = self.rounds = 0  # since the start; those that have ended, however they did
        self.fetch: Callable[[], None] = lambda: None  # let ``take`` have what has come

    def start(self) -> None:
        self._prompts, self._token = prompts_of(self._config.prompts), token_of(self._config)
        try:
            self._refer()
        except CanaryFileError as error:
            raise ConfigError([f"canary.reference: {error}"]) from None
        self._thread = threading.Thread(target=self._run, name="canaries", daemon=True)
        self._thread.start()

    def _refer(self) -> None:
        """Read the reference if it is there, and another one than before. Raises CanaryFileError."""
        path = self._config.reference
        if path is None or not path.exists():
            return
        written = path.stat().st_mtime_ns
        if written == self._known_of:
            return
        known = read_reference(path)
        with self._changed:
            self._known, self._known_of = known, written
            self._newest.clear()

    def stop(self) -> None:
        self._stop.set()
        self._asked.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    # the keeper's side

    def take(self, rows: Sequence[CanaryRow]) -> None:
        """Rows that came from the engine; those of no round are dropped and counted."""
        if rows:
            with self._changed:
                self._arrivals.add(rows)
                self._changed.notify_all()

    def hurry(self) -> None:
        self._asked.set()

    def says(self, circuit: str, after: int) -> Canaries:
        with self._changed:
            newest = [made for number, made in self._newest if number > after]
        plan = self._plan()
        spec = (
            None
            if plan is None
            else next((one.circuit.spec_hash for one in plan.circuits if one.name == circuit), None)
        )
        return Canaries.SILENT if spec is None else says(newest, circuit_group(circuit, spec), self._config.limit)

    # rounds

    def _run(self) -> None:
        due_s = self._clock.monotonic_s()
        while not self._stop.is_set():
            self._asked.wait(_ENGINE_S)
            now_s = self._clock.monotonic_s()
            plan = self._plan()
            if self._stop.is_set() or plan is None or not plan.circuits:
                continue
            if self._asked.is_set() or now_s >= due_s:
                twice = self._asked.is_set()
                self._asked.clear()
                self._round(plan)
                if twice:  # whoever asks wants two rounds that agree
                    self._round(plan)
                due_s = self._clock.monotonic_s() + self._config.every_s

    def _round(self, plan: Plan) -> None:
        self.begun += 1
        try:
            self._send(plan)
        except Exception as error:  # noqa: BLE001 - an engine that is gone, or a bug: counted, and the next round has another chance
            self._counts["failed"] += 1
            self.rounds += 1  # whoever waits for rounds is not kept waiting
            self._log.event(Level.WARNING, "canaries_failed", type=type(error).__name__, text=str(error)[:200])

    def _send(self, plan: Plan) -> None:
        self._refer()
        rows = self._rows_of(plan)
        values = PlanValues(plan)
        tokens = ((row.name, row.offset) for row in rows)
        read = dict(zip(tokens, values.of(rows) if rows else (), strict=True))
        about = self._about(plan, values)
        if read and self._folder is not None:
            write_round(self._folder, Kept(about, read), KEPT_ROUNDS)
        self._judge(about, read)

    def _rows_of(self, plan: Plan) -> list[CanaryRow]:
        """From the first prompt until the last token of every prompt that was answered is here, or patience ends."""
        self.fetch()  # what is of no round goes before one begins
        with self._changed:
            self._arrivals.begin(plan.generation, len(self._prompts))
        try:
            self._wait_for(Sender(self._config, self._token).send(self._prompts))
        finally:
            with self._changed:
                rows = self._arrivals.end()
        return rows

    def _wait_for(self, prompts: int) -> None:
        ends_s = time.monotonic() + _ARRIVAL_S
        while True:
            self.fetch()
            with self._changed:
                if self._stop.is_set() or self._arrivals.prompts >= prompts or time.monotonic() >= ends_s:
                    return
                self._changed.wait(_LOOK_S)

    def _judge(self, about: About, read: Mapping[Token, FloatArray]) -> None:
        """What is compared with nothing says nothing of the model as it is now, and neither do rounds from before it."""
        known = self._known
        why = _why_not(None if known is None else known[0], about)
        if known is None:
            whole = len({name for name, _ in read}) == len(self._prompts)
            self._note("whole" if whole else "partial", None, why)
        elif why:
            self._note("not_compared", None, why)
        else:
            made = compare(known[1], in_columns_of(known[0], about, read), shared_groups(known[0], about))
            self._note("whole" if made.whole else "partial", made)

    def _about(self, plan: Plan, values: PlanValues) -> About:
        model = plan.model
        at_s = self._clock.unix_ns() // 10**9
        return About(model.weights_digest, model.dtype, model.engine, digest_of(self._prompts), at_s, values.groups)

    def _note(self, outcome: str, made: Round | None, why: str = "") -> None:
        if why and why != self._uncompared:
            self._log.event(Level.WARNING, "canaries_not_compared", text=f"{why}: sidecar canary record")
        with self._changed:
            self._uncompared = why
            if made is None:
                self._newest.clear()
            else:
                self._newest.append((self.begun, made))
        self._counts[outcome] += 1
        if outcome == "whole":
            self._whole_s = self._clock.monotonic_s()
        self.rounds += 1

    def snapshot(self) -> CanarySnapshot:
        with self._changed:
            newest = [made for _, made in self._newest]
            told = CanarySnapshot(
                configured=True,
                recorded=not self._uncompared,
                rounds=dict(self._counts),
                age_s=None if self._whole_s is None else self._clock.monotonic_s() - self._whole_s,
                every_s=self._config.every_s,
                unused={why.value: many for why, many in self._arrivals.unused.items()},
            )
        plan = self._plan()
        return told if plan is None or not plan.circuits else self._with_distances(told, PlanValues(plan), newest)

    def _with_distances(self, told: CanarySnapshot, values: PlanValues, newest: Sequence[Round]) -> CanarySnapshot:
        distances = dict(newest[-1].distances) if newest else {}
        found = moved(newest, self._config.limit)
        layers = [where for name, where in values.taps.items() if name in found]
        compared = {name: distance for name, distance in distances.items() if not math.isnan(distance)}
        return replace(
            told,
            circuits={
                name: distances[group] for group, name in values.circuits.items() if group in compared or group in found
            },
            layers={name: compared[name] for name in values.taps if name in compared},
            moved_circuits=tuple(name for group, name in values.circuits.items() if group in found),
            moved_layers=tuple(where.name for where in layers),
            first_moved=min(layers).name if layers else "",
        )


def _why_not(reference: About | None, about: About) -> str:
    """Why a round cannot be compared, for people; empty if it can."""
    if reference is None:
        return "there is no reference"
    if unlike := reference.unlike(about):
        return f"the reference differs in {' and '.join(unlike)}"
    return "" if shared_groups(reference, about) else "the reference is of other circuits"
