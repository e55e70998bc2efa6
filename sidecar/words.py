"""The sidecar's status in plain words: what is seen, how it runs, and why."""

from __future__ import annotations

import math
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
    return lines


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
