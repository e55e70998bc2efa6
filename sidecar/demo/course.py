"""The course of a demo: it learns what is usual, is armed, something is planted, and an alarm is raised, or is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from protos.stethoscope.v1 import control_pb2
from sidecar.demo.alerts import ACTIVITY, MODEL_CHANGED, Alert, alerts
from sidecar.demo.options import Plant
from sidecar.demo.reference import Home, Learned, fit, record_canaries

ARMED_S = 10.0  # that it is quiet before anything is planted
QUIET_S = 10.0  # after the alarm: nothing else comes
LIMIT_S = 300.0  # for the alarm, since it was planted
LEARNING_S = 600.0  # in which a machine of any speed has learned, or something is wrong
_TRY_S = 5.0  # between two looks into the archive
_COMPARED = 2  # rounds of canaries, before it is armed
EXPECTED = {Plant.ABLATION: (MODEL_CHANGED, "model"), Plant.TRAFFIC: (ACTIVITY, "traffic")}


class Phase(StrEnum):
    LEARNING = "learning"
    ARMED = "armed"
    PLANTED = "planted"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert, or a circuit's alarm, when it was first seen: seconds since the course began, and since the planting."""

    what: Alert
    after_s: float
    after_plant_s: float | None


class Course:
    """``look`` at every status that comes; it does what is due. One thread's. plants: how what is planted is done."""

    def __init__(self, home: Home, plant: Plant | None, plants: Callable[[], None]) -> None:
        self.plant = plant
        self.learned: Learned | None = None
        self.alerts: list[Raised] = []  # that somebody would have been woken by
        self.alarms: list[Raised] = []  # of circuits, each with its diagnosis, also those that an alert holds back
        self.phases: dict[Phase, float] = {Phase.LEARNING: 0.0}  # when each began, seconds since the course did
        self._home, self._plants = home, plants
        self._began_s: float | None = None
        self._now_s = self._tried_s = 0.0
        self._rounds: int | None = None  # whole ones, when the reference was made of some
        self._whole_s: float | None = None  # since when everything that was planted for has been there

    @property
    def phase(self) -> Phase:
        return list(self.phases)[-1]

    @property
    def over(self) -> bool:
        """What was planted has had its effect and nothing came after it, or it had none in all the time that it was given."""
        if self.plant is None:
            return False
        if self._whole_s is not None:
            return self._now_s - self._whole_s >= QUIET_S
        planted_s = self._since_planted()
        return self._now_s >= LEARNING_S if planted_s is None else planted_s >= LIMIT_S

    @property
    def as_planted(self) -> bool:
        """The one alert came that was planted for, with its diagnosis; or none, if nothing was."""
        if self.plant is None:
            return not self.alerts and not self.alarms
        name, diagnosis = EXPECTED[self.plant]
        right = [(one.what.name, one.what.diagnosis) for one in self.alerts] == [(name, diagnosis)]
        others = [one for one in self.alarms if one.what.diagnosis != diagnosis]
        early = [one for one in (*self.alerts, *self.alarms) if one.after_plant_s is None]
        return right and bool(self.alarms) and not others and not early

    def look(self, now: control_pb2.GetStatusResponse, at_s: float) -> None:
        """at_s: of any clock that only goes on."""
        if self._began_s is None:
            self._began_s = at_s
        self._now_s = at_s - self._began_s
        self._listen(now)
        if self.phase is Phase.LEARNING and self._now_s - self._tried_s >= _TRY_S:
            self._tried_s = self._now_s
            self._learn(now)
        elif self.phase is Phase.ARMED and self.plant and self._now_s - self.phases[Phase.ARMED] >= ARMED_S:
            self._enter(Phase.PLANTED)
            self._plants()

    def _learn(self, now: control_pb2.GetStatusResponse) -> None:
        """The canaries' reference first: rounds go on while the traffic's is learned."""
        if self._rounds is None and record_canaries(self._home):
            self._rounds = now.canaries.whole
        if self._rounds is None:
            return
        self.learned = self.learned or fit(self._home)
        compared = now.canaries.recorded and now.canaries.whole >= self._rounds + _COMPARED
        watched = all(part.HasField("log_threshold") for one in now.circuits for part in one.slices)
        if self.learned and compared and watched:
            self._enter(Phase.ARMED)

    def _listen(self, now: control_pb2.GetStatusResponse) -> None:
        alarms = [
            Alert(ACTIVITY, one.cause, circuit.name, one.leans) for circuit in now.circuits for one in circuit.alarms
        ]
        for seen, told in ((self.alerts, alerts(now)), (self.alarms, alarms)):
            known = [one.what for one in seen]
            seen.extend(Raised(what, self._now_s, self._since_planted()) for what in told if what not in known)
        if self.alerts and self.phase is Phase.PLANTED:
            self._enter(Phase.ALARM)
        if self._whole_s is None and self.as_planted and self.plant:
            self._whole_s = self._now_s

    def _since_planted(self) -> float | None:
        return self._now_s - self.phases[Phase.PLANTED] if Phase.PLANTED in self.phases else None

    def _enter(self, phase: Phase) -> None:
        self.phases[phase] = self._now_s
