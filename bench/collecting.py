"""What collecting activations costs beside computing them: ``python -m bench.collecting [--short]``.

On SmolLM2 and SST-2 texts, fed plainly, at block 0, the middle and the last one, so that nothing is saved by stopping early. The
bare loop runs the same batches through the same decoder and keeps nothing. Both take turns, shard by shard.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.row import Row, median_interval, ratio
from probes.activations.collect import Options, store_contents
from probes.activations.feeding import Feeding
from probes.activations.index import Contents
from probes.activations.model import LabModel, open_model
from probes.activations.plan import batches
from probes.activations.shared import Shared, compute_shards
from probes.activations.writer import ShardWriter, begin_store
from probes.data.reading import Sources, load_texts

_DATA = "sae:92_glue_sst2"
_SPAWN = multiprocessing.get_context("spawn")
_WAIT_S = 300


def measure(*, short: bool = False) -> list[Row]:
    from probes.smollm2 import prepared_model

    count, rounds = (600, 1) if short else (1200, 3)
    folder = prepared_model(progress=False)
    lab = open_model(folder)
    plain, chat = (_contents(lab, count, chat=chat) for chat in (False, True))
    bare, ours = _in_turns(lab, plain)
    templated = [_whole(lab, chat)]
    cores = len(os.sched_getaffinity(0))
    bare_all, ours_all = _at_once(folder, plain, cores, rounds)
    note = f"{count} texts of SST-2, fed plainly, residual stream at 3 of 30 blocks; both with one thread"
    return [
        ratio("collecting / bare forward loop, tokens/s", ours, bare, note).at_least(0.9),
        ratio(f"the same, {cores} processes of each at once", ours_all, bare_all, "models loaded before").at_least(0.9),
        _rate("collecting, tokens/s, one process", ours, "fed plainly"),
        _rate("collecting, tokens/s, one process, chat", templated, "the template's beginning is computed once"),
        _rate(f"collecting, tokens/s, {cores} processes", ours_all, "fed plainly"),
    ]


def _contents(lab: LabModel, count: int, *, chat: bool) -> Contents:
    loaded = load_texts(Sources(data=(_DATA,), limit=count))
    last = lab.identity.layers - 1
    return store_contents(lab, loaded, Options(layers=f"0,{last // 2},{last}", feeding=Feeding(chat=chat)))


def _in_turns(lab: LabModel, contents: Contents) -> tuple[list[float], list[float]]:
    """Tokens a second of the bare loop and of collecting, for every shard but the first, which warms."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with _begun(contents) as into:
        writer = ShardWriter(into)
        for shard in range(writer.index.shard_count):
            for is_bare in (True, False) if shard % 2 else (False, True):
                began_s = time.perf_counter()
                _run(lab, into, Shared([shard]), is_bare=is_bare)
                rates[is_bare].append(_tokens(writer, [shard]) / (time.perf_counter() - began_s))
    return rates[True][1:], rates[False][1:]


def _whole(lab: LabModel, contents: Contents) -> float:
    """Tokens a second of collecting all."""
    with _begun(contents) as into:
        writer = ShardWriter(into)
        shards = writer.missing()
        began_s = time.perf_counter()
        _run(lab, into, Shared(shards), is_bare=False)
        return _tokens(writer, shards) / (time.perf_counter() - began_s)


def _at_once(model: Path, contents: Contents, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Tokens a second over all of ``count`` processes, by round, from the moment when all have their model."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with _begun(contents, 2 * (rounds + 1)) as into:
        folders = [into.parent / str(number) for number in range(2 * (rounds + 1))]
        writer = ShardWriter(into)
        shards = writer.missing()
        shares = [Shared(shards) for _ in folders]
        barrier = _SPAWN.Barrier(count + 1)
        helpers = [
            _SPAWN.Process(target=_help, args=(model, folders, shares, barrier), daemon=True) for _ in range(count)
        ]
        for helper in helpers:
            helper.start()
        barrier.wait(_WAIT_S)
        for number in range(len(folders)):
            began_s = time.perf_counter()
            barrier.wait(_WAIT_S)
            if number > 1:  # the first of each warms
                rates[_is_bare(number)].append(_tokens(writer, shards) / (time.perf_counter() - began_s))
        for helper in helpers:
            helper.join()
    return rates[True], rates[False]


def _is_bare(number: int) -> bool:
    """Every other time in the opposite order."""
    return number % 4 in (0, 3)


def _help(model: Path, folders: Sequence[Path], shares: Sequence[Shared], barrier: Any) -> None:
    lab = open_model(model)
    for number, (folder, shared) in enumerate(zip(folders, shares, strict=True)):
        barrier.wait(_WAIT_S)
        _run(lab, folder, shared, is_bare=_is_bare(number))
    barrier.wait(_WAIT_S)


def _run(lab: LabModel, folder: Path, shared: Shared, *, is_bare: bool) -> None:
    if is_bare:
        _bare(lab, ShardWriter(folder), shared.take())
    else:
        compute_shards(lab, folder, shared, lambda _count: None)


def _bare(lab: LabModel, writer: ShardWriter, shards: Iterator[int]) -> None:
    import torch

    decoder = lab.model.get_decoder()
    with torch.inference_mode():
        for shard in shards:
            texts = [writer.index.tokens(int(text)) for text in writer.index.texts_of(shard)]
            for batch in batches(range(len(texts)), [len(text) for text in texts]):
                longest = max(len(texts[text]) for text in batch)
                ids = [[*texts[text], *[0] * (longest - len(texts[text]))] for text in batch]
                decoder(input_ids=torch.tensor(ids), use_cache=False)


def _tokens(writer: ShardWriter, shards: Sequence[int]) -> int:
    starts = writer.index.starts
    return sum(int(starts[text + 1] - starts[text]) for shard in shards for text in writer.index.texts_of(shard))


@contextmanager
def _begun(contents: Contents, count: int = 1) -> Iterator[Path]:
    """Folders 0 ... count - 1 of a begun store each; gives the first."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            begin_store(Path(folder) / str(number), contents)
        yield Path(folder) / "0"


def _rate(name: str, rates: Sequence[float], note: str) -> Row:
    value, interval = median_interval(rates)
    return Row(name, value, interval=interval, note=note)


def main() -> int:
    from rich.console import Console

    from bench.__main__ import table
    from bench.machine import describe

    parser = argparse.ArgumentParser(prog="bench.collecting", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer texts and rounds: for a look, not for the record")
    machine = describe()
    Console(width=190).print(table(measure(short=parser.parse_args().short), machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
