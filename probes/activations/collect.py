"""Collect: a local model, labelled texts and tap points become an activation store; cut off, it goes on where it was."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from probes.activations.computing import Bar, Job, Spent, compute
from probes.activations.facts import StateDtype, StoreFacts
from probes.activations.feeding import Fed, Feeding, feed
from probes.activations.files import forget_parts
from probes.activations.index import Contents
from probes.activations.layers import parse_layers
from probes.activations.model import LabModel, ModelDtype, open_model, prepared
from probes.activations.reader import widths
from probes.activations.sites import find_sockets
from probes.activations.store import ActivationStore
from probes.activations.writer import LOCK, begin_store
from probes.data.reading import Loaded
from probes.data.texts import data_digest
from probes.errors import LabError
from probes.manifest import ModelBinding
from sidecar.types import Site, TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True, slots=True)
class Options:
    """What to take, and how. layers: see `parse_layers`.

    processes: None is one for each core, fewer for little text. dtype: of the states on disk; model_dtype: of the model.
    """

    layers: str = ""
    sites: tuple[Site, ...] = (Site.RESID_POST,)
    feeding: Feeding = field(default_factory=Feeding)
    skip_positions: int = 1
    dtype: StateDtype = "float32"
    model_dtype: ModelDtype = "float32"
    processes: int | None = None
    licence: str = "not stated"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose states they are: see StoreFacts. hook_points: in the order of the store's tap points."""

    model: ModelBinding
    width: int
    widths: dict[str, int]
    hook_points: dict[str, str]


@dataclass(frozen=True, slots=True)
class Collected:
    """The whole store, and what this run added to it."""

    store: ActivationStore
    spent: Spent


def collect(model: Path, loaded: Loaded, into: Path, options: Options, bars: Progress) -> Collected:
    """Compute every text's states at every tap point that ``into`` does not hold yet.

    Rows are those of a forward of each text alone, up to rounding (other batch shapes). Raises LabError naming the file, row or
    tap point; what was finished before stays, and the same call goes on from there. So it is after a kill.
    """
    task = bars.add_task("opening the model", total=None)
    folder = prepared(model, bars)
    lab = open_model(folder, options.model_dtype)
    contents = store_contents(lab, loaded, options)
    with locked(into):
        forget_parts(into)
        begin_store(into, contents)
        spent = compute(
            lab, Job(folder, options.model_dtype, into, options.processes), Bar(bars, task, len(loaded.texts))
        )
    return Collected(ActivationStore.open(into), spent)


def chosen_points(options: Options, depth: int) -> tuple[TapPoint, ...]:
    """Of a model of so many blocks. Raises LabError as `parse_layers` does."""
    return tuple(TapPoint(layer, site) for site in options.sites for layer in parse_layers(options.layers, depth))


def store_contents(lab: LabModel, loaded: Loaded, options: Options) -> Contents:
    """Everything about the store that is known before the first state is computed. Raises LabError as `collect` does."""
    points = chosen_points(options, lab.identity.layers)
    sockets = find_sockets(lab.model, points)
    fed = feed(lab, loaded.texts, loaded.places, options.feeding)
    words = {socket.point.name: socket.words for socket in sockets}
    return contents_of(loaded, options, fed, Origin(lab.binding, lab.identity.width, widths(lab.model, points), words))


def contents_of(loaded: Loaded, options: Options, fed: Fed, origin: Origin) -> Contents:
    """The same for states of any origin."""
    facts = StoreFacts(
        model=origin.model,
        width=origin.width,
        tap_points=tuple(origin.hook_points),
        widths=origin.widths,
        hook_points=origin.hook_points,
        skip_positions=options.skip_positions,
        chat=fed.chat,
        chat_template_digest=fed.template_digest,
        max_tokens=fed.max_tokens,
        truncated=fed.truncated,
        state_dtype=options.dtype,
        data_name=loaded.name,
        data_digest=data_digest(loaded.texts),
        data_licence=options.licence,
        positive_label=loaded.positive_label,
        negative_label=loaded.negative_label,
        outside=loaded.outside,
    )
    return Contents(facts, fed.texts, loaded.places, fed.tokens)


@contextmanager
def locked(into: Path) -> Iterator[None]:
    """Hold the folder alone; the system frees it if this process dies. Raises LabError if another process holds it."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        with (into / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise LabError(f"another process collects into {into}") from None
    except OSError as error:
        raise LabError(f"{into} cannot be written: {error.strerror}") from None
