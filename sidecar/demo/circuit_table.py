"""Circuits in the demo's live table: how often they are at work, what speaks against sound traffic, their canaries, the course."""

from __future__ import annotations

from collections import deque

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from protos.stethoscope.v1 import control_pb2
from sidecar.demo.course import Course, Phase, Raised
from sidecar.demo.reference import CANARY_ROUNDS, SESSIONS

_RECENT_S = 30.0
_COLUMNS = ("circuit", "state", "engaged", "last 30 s", "sessions", "evidence", "canaries,\nx noise", "alarm")
_MANY = 100
_STATES = {"validated": "green", "learning": "yellow"}


class Recent:
    """The engaged share of the last half minute, circuit by circuit."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, int, int]]] = {}

    def note(self, now: control_pb2.GetStatusResponse, at_s: float) -> None:
        for one in now.circuits:
            seen = self._seen.setdefault(one.name, deque())
            seen.append((at_s, *_counts(one)))
            while len(seen) > 1 and seen[1][0] <= at_s - _RECENT_S:
                seen.popleft()

    def share(self, circuit: str) -> float | None:
        """None as long as there were no tokens."""
        seen = self._seen.get(circuit)
        if not seen:
            return None
        (_, tokens, engaged), (_, all_tokens, all_engaged) = seen[0], seen[-1]
        return (all_engaged - engaged) / (all_tokens - tokens) if all_tokens > tokens else None


def circuits(now: control_pb2.GetStatusResponse, course: Course, recent: Recent) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title=f"circuits: {course.phase.value}", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("circuit", "state", "alarm") else "right")
    for one in now.circuits:
        tokens, engaged = _counts(one)
        shares = (engaged / tokens if tokens else None, recent.share(one.name))
        table.add_row(
            one.name,
            Text(one.state, style=_STATES.get(one.state, "")),
            *("-" if share is None else f"{share:.1%}" for share in shares),
            f"{sum(part.sessions for part in one.slices):,}",
            _evidence(one),
            _canaries(one),
            _alarm(one),
        )
    below = Group(*(Text(line, "dim") for line in _below(now, course)), *map(_told, course.alerts), "")
    return Group(table, Padding(below, (0, 0, 0, 2)))


def _counts(one: control_pb2.CircuitState) -> tuple[int, int]:
    return sum(part.tokens for part in one.slices), sum(part.engaged for part in one.slices)


def _evidence(one: control_pb2.CircuitState) -> str:
    """Of the slice in which most speaks against sound traffic."""
    told = [(part.log_evidence, part.log_threshold) for part in one.slices if part.HasField("log_evidence")]
    return "-" if not told else "{:.1f} of {:.1f}".format(*max(told))


def _canaries(one: control_pb2.CircuitState) -> Text:
    if not one.HasField("canary_distance"):
        return Text("-")
    digits = ",.0f" if one.canary_distance >= _MANY else ".1f"
    return Text(format(one.canary_distance, digits), style="bold red" if one.canary_moved else "")


def _alarm(one: control_pb2.CircuitState) -> Text:
    told = [f"{alarm.leans}: {alarm.cause}" for alarm in one.alarms]
    return Text(told[-1], style="bold red") if told else Text("none", style="green")


def _below(now: control_pb2.GetStatusResponse, course: Course) -> list[str]:
    """Which phase began when, and what the reference is worth, or is still to be made of."""
    planted = {Phase.PLANTED: f"planted ({course.plant})"}
    phases = ", ".join(f"{planted.get(phase, phase)} at {at_s:.0f} s" for phase, at_s in course.phases.items())
    if course.learned is not None:
        return [phases, course.learned.words]
    sessions = sum(part.sessions for one in now.circuits for part in one.slices)
    have = f"{sessions} sessions of {SESSIONS}, {now.canaries.whole} rounds of canaries of {CANARY_ROUNDS}"
    return [
        phases,
        f"a toy reference is learned from this demo's own traffic: {have}; nothing alarms before it is there",
    ]


def _told(one: Raised) -> Text:
    about = f" about {one.what.circuit}, {one.what.leans} engaged than sound traffic" if one.what.circuit else ""
    after = (
        "before anything was planted" if one.after_plant_s is None else f"{one.after_plant_s:.0f} s after the planting"
    )
    return Text(f"ALERT {one.what.name}{about}: diagnosis {one.what.diagnosis}, {after}", "bold red")
