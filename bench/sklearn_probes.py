"""The same 64 probes as scikit-learn's own objects in the engine's process, as a notebook would run them, beside the sidecar."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.peers import RingPeer
from bench.rounds import Contender
from bench.row import Row, ratio
from bench.serving import serving_plan
from bench.steps import REFERENCE, Steps

_PROBES, _EXAMPLES = 64, 48


def fitted(count: int, width: int) -> list[Any]:
    """Logistic regressions, each fitted to labels of its own."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_EXAMPLES, width)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether they have converged makes no difference to what they cost
        return [LogisticRegression(max_iter=20).fit(rows, _labels(rng)) for _ in range(count)]


def _labels(rng: np.random.Generator) -> Any:
    return np.arange(_EXAMPLES) % 2 if rng.random() < 0.5 else np.arange(_EXAMPLES) // 2 % 2


def score(probes: Sequence[Any], tap: Any) -> list[Any]:
    """Every probe's probability of every row; tap: one tap point's rows of a step as bf16 elements, [T, D]."""
    rows = torch.from_numpy(tap.view(np.int16)).view(torch.bfloat16).float().numpy()
    return [probe.predict_proba(rows)[:, 1] for probe in probes]


def measure(*, short: bool = False) -> list[Row]:
    rounds, count = (4, 30) if short else (16, 60)
    torch.set_num_threads(1)
    probes = fitted(_PROBES, REFERENCE.columns)
    steps = Steps()
    with (
        serving_plan(REFERENCE.columns, REFERENCE.taps, _PROBES) as served,
        RingPeer(served.address, REFERENCE.columns) as peer,
    ):
        ours = Contender(peer, steps, (served.control_pid, served.worker_pid), count)
        mine, theirs = [], []
        for number in range(rounds + 1):
            mine.append(ours.round().cpu_s / REFERENCE.token_layers)
            theirs.append(_cpu_s(probes, steps, number))
        note = f"{_PROBES} LogisticRegression.predict_proba, {REFERENCE.rows} rows a call, D=4096; ours: both processes"
        made = ratio("64 scikit-learn probes in process / ours, CPU per row", theirs[1:], mine[1:], note)
        return [made.at_least(45)]


def _cpu_s(probes: Sequence[Any], steps: Steps, number: int) -> float:
    """Of this thread, for a row at one tap point."""
    step = steps.states[number % len(steps.states)]
    start_s = time.thread_time()
    for tap in step:
        score(probes, tap)
    return (time.thread_time() - start_s) / REFERENCE.token_layers
