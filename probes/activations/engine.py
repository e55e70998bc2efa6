"""Collect from a serving engine: its server is asked every text, and what its tap sends becomes a store like any other."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probes.activations.collect import Collected, Options, Origin, chosen_points, contents_of, locked
from probes.activations.computing import Spent
from probes.activations.feeding import Fed, feed
from probes.activations.files import forget_parts
from probes.activations.index import FACTS, same_contents
from probes.activations.model import UnloadedModel, open_unloaded, prepared
from probes.activations.recorded import Recordings, open_recordings, write_prompts
from probes.activations.recording import ask
from probes.activations.store import ActivationStore
from probes.activations.writer import ShardWriter, begin_store
from probes.data.reading import Loaded
from probes.errors import LabError
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True, slots=True)
class Engine:
    """server: its URL; "" if everything was recorded before. address: where its tap connects; "" is the usual place.

    recorded: the folder of recordings, which is kept; None for one beside the store, which goes when the store is whole.
    """

    server: str
    address: str
    recorded: Path | None


def collect_recorded(
    model: Path, loaded: Loaded, into: Path, options: Options, engine: Engine, bars: Progress
) -> Collected:
    """As `collect`, of an engine's states instead: the same texts, tokens and rows, bound to the engine as it registered.

    model: the folder of the model that the engine serves; of it the tokenizer and the configuration are read. Raises LabError
    naming what has gaps, or is of another model; what was recorded and written stays, and the same call goes on from there.
    """
    unloaded = open_unloaded(prepared(model, bars))
    fed = feed(unloaded, loaded.texts, loaded.places, options.feeding)
    if (done := _done(loaded, into, options, fed)) is not None:
        return Collected(done, Spent(0, 0.0, 0))
    points = _points(options, unloaded, engine)
    folder = engine.recorded or into.with_name(f"{into.name}.recorded")
    began_s = time.monotonic()
    if engine.server:
        ask(folder, points, engine.server, engine.address, fed.tokens, loaded.places, bars)
    recordings = open_recordings(folder, unloaded, points)
    if missing := recordings.missing(fed.tokens):
        raise LabError(
            f"{folder} lacks {len(missing)} of {len(fed.tokens)} texts, {loaded.places[missing[0]]} first: record them too"
        )
    tokens = _write(recordings, loaded, into, options, fed)
    store = ActivationStore.open(into)
    if engine.recorded is None:
        shutil.rmtree(folder)
    return Collected(store, Spent(tokens, time.monotonic() - began_s, 0))


def prompts_of(model: Path, loaded: Loaded, options: Options, into: Path, bars: Progress) -> int:
    """Write every text's tokens for `sidecar record --ask`; how many prompts there are. Raises LabError."""
    fed = feed(open_unloaded(prepared(model, bars)), loaded.texts, loaded.places, options.feeding)
    write_prompts(into, fed.tokens)
    return len(fed.tokens)


def _points(options: Options, unloaded: UnloadedModel, engine: Engine) -> tuple[TapPoint, ...]:
    """Without a word about it, all that was recorded before."""
    return chosen_points(options, unloaded.layers) if engine.server or options.layers else ()


def _done(loaded: Loaded, into: Path, options: Options, fed: Fed) -> ActivationStore | None:
    """The store, if it is whole and is just what is asked for: then no engine is needed."""
    if not (into / FACTS).is_file():
        return None
    try:
        store = ActivationStore.open(into)
    except LabError:
        return None
    facts = store.facts
    before = Origin(facts.model, facts.width, facts.widths, facts.hook_points)
    if differing := same_contents(into, contents_of(loaded, options, fed, before)):
        raise LabError(f"{into} holds activations of something else (other: {differing}); write to another folder")
    return store


def _write(recordings: Recordings, loaded: Loaded, into: Path, options: Options, fed: Fed) -> int:
    """Every shard that is not there yet; how many tokens that were."""
    written = 0
    with locked(into):
        forget_parts(into)
        begin_store(into, contents_of(loaded, options, fed, recordings.origin))
        writer = ShardWriter(into)
        for shard in writer.missing():
            tokens = [writer.index.tokens(int(text)) for text in writer.index.texts_of(shard)]
            states = {
                point.name: [recordings.rows(ids, point, options.skip_positions) for ids in tokens]
                for point in recordings.columns
            }
            writer.write(shard, states)
            written += sum(map(len, tokens))
    return written
