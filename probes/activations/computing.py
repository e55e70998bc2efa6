"""Compute what a store lacks, on every core: one process a core, one thread a process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.activations.files import forget_parts
from probes.activations.model import LabModel, ModelDtype
from probes.activations.shared import Shared, compute_shards, start_helper
from probes.activations.writer import ShardWriter
from probes.errors import LabError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Below this a further process would hardly have started before the work is done: five seconds to import torch and load a model
# of 135M parameters, which computes 500 tokens a second on a core.
_TOKENS_A_PROCESS = 5_000
_WAIT_S = 0.2
_LAST_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """model: its folder, from which further processes load it. processes: None for one a core, fewer for little text."""

    model: Path
    dtype: ModelDtype
    into: Path
    processes: int | None


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that were fed, wall seconds from the first of them to the last, and how many processes did it; 0: another engine."""

    tokens: int
    seconds: float
    processes: int

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """The progress bar of one collection: tokens, and tokens a second over all processes."""

    bars: Progress
    task: TaskID
    texts: int

    def show(self, tokens: int, total: int, seconds: float) -> None:
        told = f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 and tokens else "starting"
        self.bars.update(self.task, description=f"reading {self.texts} texts, {told}", completed=tokens, total=total)


def compute(lab: LabModel, job: Job, bar: Bar) -> Spent:
    """Compute and write every shard of the begun store ``job.into`` that is not there.

    Raises LabError with what stopped it, in this process or another; shards that are finished stay.
    """
    writer = ShardWriter(job.into)
    missing = writer.missing()
    total = sum(
        int(writer.index.starts[text + 1] - writer.index.starts[text])
        for shard in missing
        for text in writer.index.texts_of(shard)
    )
    if not missing:
        return Spent(0, 0.0, 0)
    count = _count(job.processes, len(missing), total)
    shared = Shared(missing)
    began_s = time.monotonic()
    helpers = [start_helper(job.model, job.dtype, job.into, shared) for _ in range(count - 1)]

    def on_tokens(_count: int) -> None:
        bar.show(shared.tokens, total, time.monotonic() - began_s)
        _check(shared, helpers)

    try:
        compute_shards(lab, job.into, shared, on_tokens)
        while not shared.done:
            time.sleep(_WAIT_S)
            on_tokens(0)
    finally:
        _end(shared, helpers)
        forget_parts(job.into)
    return Spent(total, time.monotonic() - began_s, count)


def _count(asked: int | None, shards: int, tokens: int) -> int:
    if asked is not None and asked < 1:
        raise LabError(f"--processes {asked}: at least one process is needed")
    wanted = min(len(os.sched_getaffinity(0)), 1 + tokens // _TOKENS_A_PROCESS) if asked is None else asked
    return min(wanted, shards)


def _check(shared: Shared, helpers: Sequence[Any]) -> None:
    """Raise what another process met."""
    ended = [helper.exitcode for helper in helpers if helper.exitcode is not None]
    if problem := shared.problem():
        raise LabError(problem)
    if failed := [status for status in ended if status]:
        how = f"was ended by signal {-failed[0]}" if failed[0] < 0 else f"failed with status {failed[0]}"
        raise LabError(
            f"a collecting process {how} (a process that takes too much memory is ended by signal 9); what is finished is kept: "
            "go on with fewer --processes"
        )


def _end(shared: Shared, helpers: Sequence[Any]) -> None:
    """A helper that has shards to finish gets a few seconds; one that still loads its model is not waited for."""
    shared.stop()
    for helper in helpers:
        if not shared.done:
            helper.join(_LAST_WAIT_S)
        helper.terminate()
        helper.join(_LAST_WAIT_S)
        if helper.is_alive():
            helper.kill()
            helper.join()
    shared.close()
