"""The control process's side of circuits: fetches closed ticks, archives them, diagnoses and records alarms."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sidecar.circuits.record import About
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.errors import OrderFailedError, WorkerBusyError, WorkerLostError
from sidecar.live import standing, tickwire
from sidecar.live.alarms import Alarms, Canaries, Raised
from sidecar.live.canary_rows import CanaryRow
from sidecar.live.kept import Kept
from sidecar.live.remembered import goes_on
from sidecar.live.sharing import new_source
from sidecar.live.state_file import Saved, StateFile, StateFileError
from sidecar.live.tickwire import ToldAlarm, ToldTick
from sidecar.live.unread import Unread
from sidecar.live.windows import WindowError, is_open, windows
from sidecar.log import Level, Log
from sidecar.reading.plan import Plan
from sidecar.snapshot import CanarySnapshot, CircuitAlarmSnapshot, KeeperSnapshot

_LOOKS = 4  # a tick, at least
_SECOND = 1.0
ROUNDS = 2  # of canaries, that agree


class Orders(Protocol):
    """What this needs of the worker."""

    def give(self, what: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]: ...


class Watchers(Protocol):
    """What this needs of whoever sends canaries. Called by the keeper's thread."""

    begun: int  # rounds, since the start
    rounds: int  # those of them that have ended, however they did

    def take(self, rows: Sequence[CanaryRow]) -> None: ...

    def hurry(self) -> None:
        """Somebody waits for a round."""

    def says(self, circuit: str, after: int) -> Canaries:
        """Of the newest rounds, without the first ``after`` that began."""

    def snapshot(self) -> CanarySnapshot: ...


class NoCanaries:
    """Nobody sends any."""

    begun = rounds = 0

    def take(self, rows: Sequence[CanaryRow]) -> None:
        del rows

    def hurry(self) -> None: ...

    def says(self, circuit: str, after: int) -> Canaries:
        del circuit, after
        return Canaries.SILENT

    def snapshot(self) -> CanarySnapshot:
        return CanarySnapshot()


class Keeper:
    """A thread of its own between ``start`` and ``stop``. ``look`` is what it does; a test may call it without a thread.

    plan_of: the plan of a generation, as long as it is remembered. state: the file from which it goes on after a restart.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        worker: Orders,
        plan_of: Callable[[int], Plan | None],
        log: Log,
        canaries: Watchers | None = None,
        state: Path | None = None,
    ) -> None:
        self._config = config.circuits
        self._config_hash = hashlib.sha256(config.circuits.model_dump_json().encode()).hexdigest()
        self._clock = clock
        self._worker = worker
        self._plan_of = plan_of
        self._log = log
        self.canaries: Watchers = NoCanaries() if canaries is None else canaries
        folder = self._folder = config.circuits.archive
        self._kept = None if folder is None else Kept(folder, new_source(config.circuits), config.circuits.file_ticks)
        self._alarms = Alarms(config.circuits.cool_down)
        self._unread = Unread()
        self._nameless = False  # whether it was said that nobody can bet
        self._states = StateFile(state)
        self._saved: Saved | None = None  # what the file holds
        self._before: tuple[dict[str, Any], ...] = ()  # alarms that stood before the start, until there is a plan
        self._after = 0
        self._failed = 0
        self._lock = threading.Lock()  # between the thread and whoever takes a snapshot or stops
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """The worker must be there, and no engine yet."""
        self._go_on()
        self._thread = threading.Thread(target=self._run, name="circuits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fetch what is left, the tick that runs among it. The worker must still be there. Twice is fine."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
        self.look(last=True)
        with self._lock:
            if self._kept is not None:
                self._kept.flush()
            if self._saved is not None:
                self._save(self._saved.tick, self._saved.worker)

    def _go_on(self) -> None:
        """Where the process before this one stopped, unless that is too long ago: the worker looks again once it has a plan."""
        try:
            saved = self._states.read()
        except StateFileError as error:
            self._log.event(Level.WARNING, "detectors_begin_anew", why=str(error))
            return
        tick = int(self._clock.unix_ns() / 1e9 // self._config.tick_s)
        if saved is None or not goes_on(self._config, saved.tick, saved.tick_s, tick):
            return
        whole = self._kept is not None and self._kept.restore(saved.files) and saved.whole
        try:
            with _memory(saved.worker) as memory:
                self._worker.give("remember", [memory], bytes=len(saved.worker), whole=whole)
        except (WorkerLostError, WorkerBusyError, OrderFailedError) as error:
            self._log.event(Level.WARNING, "detectors_begin_anew", why=type(error).__name__)
            return
        self._saved, self._before = saved, saved.alarms

    def _save(self, tick: int, worker: bytes) -> None:
        whole, files = (False, ()) if self._kept is None else (self._kept.whole, self._kept.files)
        alarms = (*self._before, *map(standing.pack, self._alarms.standing))
        self._saved = Saved(tick, self._config.tick_s, whole, files, alarms, worker)
        try:
            self._states.write(self._saved)
        except StateFileError as error:
            self._failed += 1
            self._log.event(Level.WARNING, "detectors_not_kept", why=str(error))

    def _stand_again(self, generation: int) -> None:
        """Alarms from before the start, once a plan knows their circuits; one without a diagnosis gets it from canaries of now."""
        plan = self._plan_of(generation)
        if plan is None or not self._before:
            return
        packed, self._before = self._before, ()
        for one in packed:
            made = standing.unpack(one, plan, self._patience_s(), self.canaries.begun)
            if made is not None:
                self._alarms.restore(made)
                self.canaries.hurry()

    def _run(self) -> None:
        while not self._stop.wait(min(_SECOND, self._config.tick_s / _LOOKS)):
            self.look()

    def look(self, *, last: bool = False) -> None:
        """Fetch what the worker has, and do what is due. What fails is counted, and tried again the next time."""
        with self._lock:
            try:
                told = self._fetch(last=last)
                self._stand_again(told.generation)
                for tick in told.ticks:
                    self._take(tick)
                self.canaries.take(told.canaries)
                settled = self._diagnose()
                if told.ticks and told.state:
                    self._save(told.ticks[-1].tick, told.state)
                elif settled and self._saved is not None:
                    self._save(self._saved.tick, self._saved.worker)
            except (WorkerLostError, WorkerBusyError, OrderFailedError):
                self._failed += 1
            except Exception as bug:  # noqa: BLE001 - counted and logged: the next tick has another chance
                self._failed += 1
                self._log.event(Level.ERROR, "circuits_failed", type=type(bug).__name__, text=str(bug)[:200])

    def _fetch(self, *, last: bool) -> tickwire.Told:
        with _memory() as memory:
            answer = self._worker.give("ticks", [memory], after=self._after, last=last)
            return tickwire.read(memory, answer["bytes"])

    def _take(self, told: ToldTick) -> None:
        self._after = told.number  # before all else: what cannot be kept must not come again and again
        if self._kept is not None:
            self._kept.add(told.tick, told.rows)
        self._unread.note(told)
        if told.steps.nameless and not self._nameless:
            self._nameless = True
            mend = (
                "give each request a hash of its session (docs/circuits.md), or set circuits.requests_are_sessions=true"
            )
            self._log.event(Level.WARNING, "no_request_names_a_session", effect="nobody bets", mend=mend)
        plan = self._plan_of(told.generation)
        for one in told.alarms:
            if plan is not None:
                self._raise(one, plan)
        self._alarms.cool(told.tick)

    def _raise(self, told: ToldAlarm, plan: Plan) -> None:
        made = standing.raised(told, plan, self._unread.share(told), self._patience_s(), self.canaries.begun)
        if made is None:
            return
        self._alarms.add(made)
        self.canaries.hurry()
        self._log.event(Level.WARNING, "circuit_alarm", circuit=told.circuit, slice=told.slice, leans=told.leans)

    def _patience_s(self) -> float:
        return self._clock.monotonic_s() + self._config.diagnose_s

    def _diagnose(self) -> bool:
        """Whether any alarm has got its diagnosis."""
        settled = self._alarms.settle(self._says)
        for one in settled:
            watched = one.alarm.watched
            if self._kept is not None and one.cause is not None:
                about = About(one.baseline, self._config_hash, one.cause.value, one.may_page, one.trace_ids)
                one.record = self._kept.record(one.alarm, about)
                while self._kept.passed_over:
                    self._log.event(Level.ERROR, "alarm_record_unsound", record=self._kept.passed_over.pop())
                if not one.record:
                    self._log.event(Level.ERROR, "alarm_not_recorded", circuit=watched.circuit, text=self._kept.problem)
            cause = None if one.cause is None else one.cause.value
            fields = {"circuit": watched.circuit, "slice": watched.slice, "cause": cause, "record": one.record}
            self._log.event(Level.WARNING, "circuit_alarm_diagnosed", **fields)
        return bool(settled)

    def _says(self, raised: Raised) -> Canaries | None:
        """What two rounds say that began after the alarm; those from before it know nothing of it."""
        if self.canaries.rounds >= raised.rounds_before + ROUNDS:
            return self.canaries.says(raised.alarm.watched.circuit, raised.rounds_before)
        late = self._clock.monotonic_s() >= raised.ask_until_s
        return Canaries.SILENT if late or isinstance(self.canaries, NoCanaries) else None

    def snapshot(self) -> KeeperSnapshot:
        deploying = self._deploying()  # reads a file: not under the lock that the ticks wait for
        with self._lock:
            kept = self._kept
            return KeeperSnapshot(
                tuple(self._told(one) for one in self._alarms.open.values()),
                dict(self._alarms.counts),
                {} if kept is None else {"written": kept.rows_written, "lost": kept.rows_lost},
                {} if kept is None else {"written": kept.records, "lost": kept.records_lost},
                self._failed,
                self.canaries.snapshot(),
                *deploying,
                newest=tuple(self._told(one) for one in self._alarms.newest.values()),
            )

    def _told(self, one: Raised) -> CircuitAlarmSnapshot:
        severity, cause = "page" if one.may_page else "ticket", "" if one.cause is None else one.cause.value
        at_s = one.alarm.tick * self._config.tick_s
        return CircuitAlarmSnapshot(*one.key, severity, cause, one.alarm.leans, one.record, at_s)

    def _deploying(self) -> tuple[bool, bool]:
        """Whether a deploy window is open, and whether that cannot be told."""
        if self._folder is None:
            return False, False
        try:
            return is_open(windows(self._folder), self._clock.unix_ns() / 1e9), False
        except WindowError:
            return False, True


@contextmanager
def _memory(data: bytes = b"") -> Iterator[int]:
    """A descriptor of memory, to be shared with the worker."""
    memory = os.memfd_create("stethoscope-circuits", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(data)
        yield memory
    finally:
        os.close(memory)
