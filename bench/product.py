"""How much of the hot path is the product itself, and whether it is the right one."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import grpc

from bench.peers import RingPeer
from bench.rounds import Contender
from bench.row import Row, median_interval
from bench.scrape import read_series
from bench.serving import Served, child, serving_plan
from bench.steps import REFERENCE, Steps
from protos.stethoscope.v1 import control_pb2
from sidecar.address import GET_STATUS

DIRECTIONS = 64
_READ_S = 'stethoscope_stage_duration_seconds_sum{stage="read"}'


def measure(*, short: bool = False) -> list[Row]:
    rounds, count = (6, 40) if short else (24, 100)
    sizes = map(str, (REFERENCE.columns, REFERENCE.rows, DIRECTIONS, REFERENCE.taps))
    with (
        serving_plan(REFERENCE.columns, REFERENCE.taps, DIRECTIONS) as served,
        child("-m", "bench.alone", *sizes) as alone,
        RingPeer(served.address, REFERENCE.columns) as peer,
    ):
        loop = Contender(peer, Steps(), (served.worker_pid,), count)
        shares, rates = [], []
        for number in range(rounds + 1):
            before_s = read_series(served.metrics_port)[_READ_S]
            hot_s = loop.round().cpu_s
            read_s = (read_series(served.metrics_port)[_READ_S] - before_s) / count
            alone_s = ask(alone, f"steps {count}")
            if number:  # the first round warms
                shares.append(alone_s / hot_s)
                rates.append(alone_s / read_s)
        return [_share(shares), _rate(rates), _choice(served, ask(alone, f"race {count}"))]


def ask(process: subprocess.Popen[str], order: str) -> Any:
    """The answer of a child that reads orders."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(order + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def _share(shares: list[float]) -> Row:
    value, interval = median_interval(shares)
    note = "CPU of the products alone / CPU of the worker, per step"
    return Row("matmul share of hot CPU", value, interval=interval, note=note).at_least(0.75, 0.9)


def _rate(rates: list[float]) -> Row:
    value, interval = median_interval(rates)
    note = "time of the products alone / of the whole stage read, in which they are: a lower bound"
    return Row("matmul rate in the loop / alone", value, interval=interval, note=note).at_least(0.85)


def _choice(served: Served, best: dict[str, dict[str, float]]) -> Row:
    """What the worker has chosen, by what every candidate takes when it is timed for longer."""
    slower = {}
    for kernel in _status(served).run.kernels:
        times = best[str(kernel.rows)]
        slower[f"{kernel.kernel} from {kernel.rows} rows"] = times[kernel.kernel] / min(times.values())
    worst = max(slower, key=lambda name: slower[name])
    note = f"the worst of: {', '.join(sorted(slower))}; candidates {', '.join(sorted(best['64']))}"
    return Row("chosen kernel / best candidate, time", slower[worst], note=note).at_most(1.1)


def _status(served: Served) -> control_pb2.GetStatusResponse:
    with grpc.insecure_channel(served.address) as channel:
        ask_status = channel.unary_unary(GET_STATUS, None, None)
        return control_pb2.GetStatusResponse.FromString(ask_status(b"", timeout=10))
