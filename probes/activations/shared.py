"""What the processes of one collection share: the shards that are left, how far they are, what went wrong."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from probes.activations.index import Index
from probes.activations.model import LabModel, ModelDtype, open_model
from probes.activations.plan import batches
from probes.activations.reader import StateReader, reading
from probes.activations.writer import ShardWriter
from probes.errors import LabError
from sidecar.types import TapPoint

_WORTH_SHARING = 4  # tokens; for fewer, copies of the cache cost more than they save
OnTokens = Callable[[int], None]
_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy torch's threads and locks in whatever state they are


class Shared:
    """Counters in shared memory. shards: those that are missing, in the order in which they are taken."""

    def __init__(self, shards: Sequence[int]) -> None:
        self.shards = list(shards)
        self.problems: Any = _SPAWN.Queue()
        self._stop = _SPAWN.Event()
        self._taken = _SPAWN.Value("q", 0)
        self._written = _SPAWN.Value("q", 0)
        self._tokens = _SPAWN.Value("q", 0)

    def take(self) -> Iterator[int]:
        """The next shard that nobody has, until there is none or `stop` was called."""
        while not self._stop.is_set():
            with self._taken.get_lock():
                at = self._taken.value
                self._taken.value += 1
            if at >= len(self.shards):
                return
            yield self.shards[at]

    def add_tokens(self, count: int) -> None:
        with self._tokens.get_lock():
            self._tokens.value += count

    def add_shard(self) -> None:
        with self._written.get_lock():
            self._written.value += 1

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self.problems.close()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def tokens(self) -> int:
        return int(self._tokens.value)

    @property
    def done(self) -> bool:
        return int(self._written.value) >= len(self.shards)

    def problem(self) -> str | None:
        with suppress(Empty):
            return str(self.problems.get_nowait())
        return None


def compute_shards(lab: LabModel, folder: Path, shared: Shared, on_tokens: OnTokens) -> None:
    """Compute and write shards until none is left; ``on_tokens`` hears of every batch, and may raise to end it."""
    writer = ShardWriter(folder)
    index = writer.index
    points = [TapPoint.parse(name) for name in index.facts.tap_points]
    with reading(lab.model, points, index.facts.skip_positions) as reader:
        _share_beginning(reader, index)
        for shard in shared.take():
            texts = [int(text) for text in index.texts_of(shard)]
            tokens = {text: index.tokens(text) for text in texts}
            states: dict[str, list[Any]] = {point.name: [] for point in points}
            for batch in batches(texts, [len(tokens[text]) - reader.shared for text in texts]):
                for name, rows in reader.read([tokens[text] for text in batch]).items():
                    states[name].extend(rows)
                count = sum(len(tokens[text]) for text in batch)
                shared.add_tokens(count)
                on_tokens(count)
            writer.write(shard, states)
            shared.add_shard()


def _share_beginning(reader: StateReader, index: Index) -> None:
    """Most of a short text fed to a chat model is the template's, and the same for all."""
    shared = index.shared_beginning()
    if shared >= _WORTH_SHARING:
        sample = index.tokens(0)
        reader.share(sample[:shared], sample)


def start_helper(model: Path, dtype: ModelDtype, folder: Path, shared: Shared) -> Any:
    """Another process that computes shards with a model of its own; it ends with its parent, whatever happens to that."""
    process = _SPAWN.Process(target=_help, args=(model, dtype, folder, shared), daemon=True)
    process.start()
    return process


def _help(model: Path, dtype: ModelDtype, folder: Path, shared: Shared) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent says what is to be done
    try:
        lab = open_model(model, dtype)
        compute_shards(lab, folder, shared, lambda _count: _go_on(shared))
    except LabError as error:
        shared.problems.put(str(error))
    except _StoppedError:
        pass


def _go_on(shared: Shared) -> None:
    parent = multiprocessing.parent_process()
    if shared.stopped or parent is None or not parent.is_alive():
        raise _StoppedError


class _StoppedError(Exception):
    """The parent wants no more of it, or is gone."""
