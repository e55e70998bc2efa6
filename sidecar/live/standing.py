"""Alarms that stand outlive the process: packed for a file, and made again once there is a plan that knows their circuit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.circuits.watch import Alarm
from sidecar.live.alarms import Cause, Raised
from sidecar.live.tickwire import ToldAlarm, packed_alarm, told_alarm
from sidecar.reading.plan import Plan


def raised(told: ToldAlarm, plan: Plan, excluded_share: float, ask_until_s: float, rounds_before: int) -> Raised | None:
    """An alarm with what the plan knows of it; None if it knows nothing of its circuit and slice."""
    key = (told.circuit, told.slice)
    watched = next((one for one in plan.watched if (one.circuit, one.slice) == key), None)
    circuit = next((one for one in plan.circuits if one.name == told.circuit), None)
    if watched is None or circuit is None:
        return None
    alarm = Alarm(watched, told.tick, told.log_e, told.log_threshold, told.leans, told.since)
    may_page = circuit.may_page and not watched.learning
    baseline = plan.baselines[told.circuit]
    return Raised(alarm, told.trace_ids, excluded_share, may_page, ask_until_s, rounds_before, baseline=baseline)


def pack(one: Raised) -> dict[str, Any]:
    """As JSON carries it."""
    watched = one.alarm.watched
    return {
        "alarm": packed_alarm(one.alarm, one.trace_ids),
        "of": [watched.spec_hash, watched.model_hash, one.baseline],
        "excluded_share": one.excluded_share,
        "cause": one.cause,
        "record": one.record,
    }


def unpack(packed: Mapping[str, Any], plan: Plan, ask_until_s: float, rounds_before: int) -> Raised | None:
    """The alarm again, with its diagnosis if it had one; None if spec, model or baseline are no longer the same.

    Raises ValueError, KeyError or TypeError if it is none of `pack`.
    """
    made = raised(told_alarm(packed["alarm"]), plan, float(packed["excluded_share"]), ask_until_s, rounds_before)
    if made is None:
        return None
    watched = made.alarm.watched
    if [watched.spec_hash, watched.model_hash, made.baseline] != packed["of"]:
        return None
    made.cause = None if packed["cause"] is None else Cause(packed["cause"])
    made.record = str(packed["record"])
    return made
