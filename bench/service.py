"""The service beside a bare gRPC stream: the same bytes, one after the other, in the same run.

The bare stream receives the same messages as bytes, answers each with as many bytes as a verdict has, and does nothing else:
what is between the two is decoding, reading, judging and accounting.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from bench.artifacts import BENCH_MODEL, write_artifacts
from bench.row import Row, ratio_row
from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.address import REGISTER, STREAM

TAPS, TOKENS, PROBES = 4, 64, 16
_ROUNDS, _STEPS = 12, 40
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Round:
    """One round of steps: seconds per step (median), and the server's CPU seconds per step."""

    step_s: float
    cpu_s: float


def messages(width: int, count: int, name: str) -> list[bytes]:
    """Step batches of TAPS tap points x TOKENS decode rows, float16-sized values in bf16."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        tensors = []
        for layer in range(TAPS):
            rows = rng.normal(size=(TOKENS, width)).astype("<f4")
            raw = (rows.view(np.uint32) >> 16).astype("<u2").tobytes()
            tensors.append(
                ingest_pb2.TapTensor(
                    tap_point=ingest_pb2.TapPoint(layer=layer, site=ingest_pb2.SITE_RESID_POST),
                    dtype=ingest_pb2.ELEMENT_TYPE_BF16,
                    rows=TOKENS,
                    columns=width,
                    raw=raw,
                )
            )
        segments = ingest_pb2.Segments(
            request_ids=[f"chatcmpl-{i:08x}" for i in range(TOKENS)],
            rows=[1] * TOKENS,
            phases=[ingest_pb2.PHASE_DECODE] * TOKENS,
            positions=[5 + number] * TOKENS,
        )
        batch = ingest_pb2.StepBatch(
            batch_id=f"{name}-{number}", engine_id="bench", taken_ns=time.time_ns(), segments=segments, tensors=tensors
        )
        made.append(ingest_pb2.StreamRequest(step_batch=batch).SerializeToString())
    return made


class Peer:
    """A long-lived stream to a server in a process of its own."""

    def __init__(self, address: str, pid: int) -> None:
        options = [("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=options)
        grpc.channel_ready_future(self._channel).result(timeout=_START_S)
        self._pid = pid
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._replies: Iterator[bytes] = iter(())

    def register(self, width: int) -> None:
        model = control_pb2.ModelIdentity(**{**BENCH_MODEL, "width": width})
        request = control_pb2.RegisterRequest(engine_id="bench", model=model).SerializeToString()
        self._channel.unary_unary(REGISTER, None, None)(request, timeout=10)

    def open(self) -> None:
        call = self._channel.stream_stream(STREAM, None, None)
        self._replies = iter(call(message for message in iter(self._requests.get, None)))
        next(self._replies)  # the control message

    def step(self, message: bytes) -> bytes:
        self._requests.put(message)
        return next(self._replies)

    def round(self, sent: list[bytes]) -> Round:
        cpu = cpu_s(self._pid)
        times = []
        for message in sent:
            start = time.perf_counter()
            self.step(message)
            times.append(time.perf_counter() - start)
        return Round(float(np.median(times)), (cpu_s(self._pid) - cpu) / len(sent))

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all its threads, to the nanosecond: the usual counters tick every 10 ms."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def measure(width: int) -> list[Row]:
    """Paired rounds at one width: alternately ours and the bare stream."""
    with tempfile.TemporaryDirectory(prefix="stb-", dir="/tmp") as folder:
        home = Path(folder)
        write_artifacts(home / "artifacts", width, TAPS, PROBES)
        ours_at, bare_at = f"unix:{home}/ours/s.sock", f"unix:{home}/bare.sock"
        serve = ["-m", "sidecar.cli", "serve", "--address", ours_at, "--artifacts", f"{home}/artifacts"]
        with (
            child(*serve, "--metrics-port", "0", "--log-level", "ERROR") as ours_process,
            child("-m", "bench.bare", bare_at) as bare_process,
        ):
            ours, bare = Peer(ours_at, ours_process.pid), Peer(bare_at, bare_process.pid)
            ours.register(width)
            ours.open()
            bare.open()
            rows = _rounds(width, ours, bare)
            ours.close()
            bare.close()
            return rows


def _rounds(width: int, ours: Peer, bare: Peer) -> list[Row]:
    result = ingest_pb2.StreamResponse.FromString(ours.step(messages(width, 1, "first")[0])).result
    if result.outcome != ingest_pb2.OUTCOME_SCORED:
        raise RuntimeError(f"the service does not score: {result.reason}")
    mine, theirs = [], []
    for number in range(_ROUNDS):
        sent = messages(width, _STEPS, f"round{number}")
        mine.append(ours.round(sent))
        theirs.append(bare.round(sent))
    mine, theirs = mine[1:], theirs[1:]  # the first round warms both
    token_layers = TAPS * TOKENS
    what = f"{TAPS} x {TOKENS} x {width} bf16, {PROBES} probes a tap point"
    return [
        ratio_row(f"round trip, service / bare gRPC stream, D={width}", *_pairs(mine, theirs, "step_s"), note=what),
        ratio_row(f"CPU per step, service / bare gRPC stream, D={width}", *_pairs(mine, theirs, "cpu_s"), note=what),
        Row(
            f"rows per CPU-second of the service, D={width}",
            token_layers / float(np.median([one.cpu_s for one in mine])),
            note="absolute, of this machine",
        ),
        Row(
            f"round trip of the service, ms, D={width}",
            1e3 * float(np.median([one.step_s for one in mine])),
            note="absolute, of this machine",
        ),
    ]


def _pairs(mine: list[Round], theirs: list[Round], what: str) -> tuple[list[float], list[float]]:
    return [getattr(one, what) for one in mine], [getattr(one, what) for one in theirs]
