"""The sidecar's status in plain words: what is seen, how it runs, and why."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator

from protos.stethoscope.v1 import control_pb2

_OLD_S = 2.0  # counts that are older were not asked for: the worker does not answer
_RUNGS = {
    "full": "everything is read",
    "no_sketches": "verdicts in full, histograms from every fourth step",
    "token_stride": "every fourth token is read, but for verdict probes",
    "fewer_tap_points": "half of the tap points are left out, but for verdict probes",
    "lower_sampling": "taps are asked for a quarter of the requests",
    "off": "nothing is read",
}
_TRANSPORTS = {"ring": "shared memory", "grpc": "gRPC"}


def in_words(now: control_pb2.GetStatusResponse) -> list[str]:
    """Lines for a terminal."""
    model = now.model.name if now.HasField("model") else "none yet"
    lines = [
        f"stethoscope {now.version}, up {now.uptime_s:.0f} s, model {model}, {now.engines} engines, plan {now.plan_generation}",
        f"{'':14}{'received':>10}{'scored':>10}{'dropped':>10}{'rejected':>10}{'in flight':>10}",
    ]
    for name, one in (("step batches", now.step_batches), ("rows", now.rows)):
        lines.append(f"{name:14}{one.received:10}{one.scored:10}{one.dropped:10}{one.rejected:10}{one.in_flight:10}")
    lines.extend(_run(now))
    lines.extend(
        f"{tap.tap_point}: seen {tap.seen} of {tap.expected} tokens" + (f", BLIND: {tap.reason}" if tap.blind else "")
        for tap in now.coverage
    )
    lines.extend(
        f"{one.name}: mean {one.mean:.3f} over {one.readings} tokens, {one.detections} detections, {one.evidence}"
        for one in now.signals
    )
    lines.extend(f"{one.name} {one.version}: {one.evidence}: {one.reason}" for one in now.artifacts if one.reason)
    for circuit in now.circuits:
        lines.extend(_circuit(circuit))
    if now.HasField("canaries"):
        lines.append(_canaries(now.canaries))
    return lines


def _circuit(one: control_pb2.CircuitState) -> Iterator[str]:
    """One circuit: what it is worth, how often it was at work, what speaks against sound traffic, its canaries, its last alarms."""
    yield f"circuit {one.name} {one.version}: {one.state}" + (f", pages nobody: {one.reason}" if one.reason else "")
    for part in one.slices:
        share = f"{part.engaged / part.tokens:.1%} of {part.tokens} tokens engaged" if part.tokens else "no tokens yet"
        yield f"  {part.slice}: {share}, {part.sessions} sessions; {_evidence(part)}"
    if one.HasField("canary_distance"):
        moved = ", MOVED" if one.canary_moved else ""
        yield f"  canaries: {one.canary_distance:.1f} times the noise from their reference{moved}"
    for alarm in one.alarms:
        when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(alarm.at_s))
        standing = "ALARM" if alarm.open else "last alarm"
        what = f"{alarm.leans} engaged than sound traffic, cause {alarm.cause}"
        yield f"  {standing} in {alarm.slice}, {when}: {what}; {alarm.record or 'no record'}"


def _evidence(part: control_pb2.CircuitSliceState) -> str:
    """How much speaks against sound traffic, as logarithms."""
    if not part.HasField("log_evidence"):
        return "no reference to compare with"
    return f"evidence {part.log_evidence:.1f} of {part.log_threshold:.1f}"


def _canaries(now: control_pb2.CanaryState) -> str:
    age = f", the newest {now.age_s:.0f} s ago" if now.HasField("age_s") else ""
    what = "compared with nothing" if not now.recorded else "quiet"
    if now.moved:
        what = f"MOVED from {now.moved[0]} on"
    return f"canaries: {now.whole} whole rounds, {now.not_whole} others{age}; {what}" + (
        "; a deploy window is open" if now.deploying else ""
    )


def _run(now: control_pb2.GetStatusResponse) -> Iterator[str]:
    """How it runs: rung, budget, transport, mode, kernels, worker; and why where there is a why."""
    run = now.run
    why = f", for {run.rung_for_s:.0f} s, because {run.rung_reason}" if run.rung_reason else ""
    yield f"rung {run.rung}: {_RUNGS.get(run.rung, '')}{why}"
    if run.counts_age_s > _OLD_S:
        yield f"WORKER DOES NOT ANSWER: counts below are {run.counts_age_s:.0f} s old"
    if run.budget_use_p99:
        use = "more than the histogram shows" if math.isinf(run.budget_use_p99) else f"at most {run.budget_use_p99:.0%}"
        yield f"budget {run.budget_s * 1e3:g} ms a step; 99 in 100 steps use {use} of it"
    for name, count in sorted(Counter(_transport(one) for one in now.streams).items()):
        yield f"transport {name}: {count} engines"
    mode = "taps send hidden states" if run.mode == "raw" else "taps multiply, and send readings"
    share = "every request" if run.request_fraction >= 1 else f"{run.request_fraction:.3g} of the requests"
    yield f"mode {run.mode}: {mode}, of {share}"
    chosen = Counter((one.rows, one.kernel) for one in run.kernels)
    if chosen:
        kernels = ", ".join(f"{kernel} from {rows} rows" for rows, kernel in sorted(chosen))
        yield f"kernels, the fastest when they were tried on this machine: {kernels}"
    place = "in memory: counts start anew with the process" if run.ledger == "memory" else f"in {run.ledger}"
    yield f"worker: a {run.worker} of its own; ledger {place}"


def _transport(one: control_pb2.EngineState) -> str:
    return f"{one.transport} ({_TRANSPORTS.get(one.transport, '?')})"
