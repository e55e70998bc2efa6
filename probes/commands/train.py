"""``probes train``: from activations to a draft, layer and kind chosen on training rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars
from probes.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console

    from probes.journal import Journal
    from probes.manifest import Aggregation
    from probes.stages import Places
    from probes.training.fitting import Fitting
    from probes.training.search import Search


def add(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a probe on collected activations; layer, kind and strength are chosen on training rows",
        description="Cross-validates tap points x kinds x aggregations x strengths on training rows, takes the earliest layer "
        "within one standard error of the best, lets its best kinds meet on rows kept for that, and writes the winner as a draft. "
        "If it is ended, the same command goes on from what it had fitted.",
    )
    train.add_argument("store", type=Path, metavar="ACTS", help="the folder that `probes collect` wrote")
    train.add_argument(
        "--into", type=Path, required=True, metavar="DRAFT", help="the draft's folder; what is there is replaced"
    )
    train.add_argument("--name", help="of the probe, such as english_sentiment; the draft folder's name if not given")
    train.add_argument("--description", default="", help="what it reads, in a sentence")
    train.add_argument("--kinds", type=_listed, metavar="A,B", help="kinds to try; all if not given")
    train.add_argument(
        "--layers", type=_listed, metavar="8,14", help="blocks to try; all that were collected if not given"
    )
    train.add_argument(
        "--aggregations", type=_listed, metavar="mean,max_ema:20", help="kind[:window[:agree]], or multimax:heads"
    )
    train.add_argument("--strengths", type=_listed, metavar="0.01,0.1", help="of regularisation, as each kind means it")
    train.add_argument(
        "--everywhere", action="store_true", help="try slow kinds at every layer, not only where quick ones did best"
    )
    train.add_argument(
        "--concatenate",
        type=_listed,
        nargs="?",
        const=(),
        metavar="8,14",
        help="read these layers together; without a value: try the two best together, and take them if that is better by more "
        "than a standard error",
    )
    train.add_argument(
        "--ray", action="store_true", help="add up on a Ray cluster (RAY_ADDRESS, or this machine); for mass_mean"
    )
    train.add_argument("--seed", type=int, default=0, help="of the parts, the folds and every start (default 0)")
    train.set_defaults(run=_train)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _train(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from probes.activations.store import ActivationStore
    from probes.draft import Draft
    from probes.training.fitting import HERE
    from probes.training.table import candidates_table, in_one_line, worth
    from probes.training.train import fingerprint, train

    store, draft, console = ActivationStore.open(arguments.store), Draft(arguments.into), Console(highlight=False)
    search = _search(arguments, store)
    fitting = _fitting(search) if arguments.ray else HERE
    kept = draft.fits(fingerprint(store, search, fitting))
    _take_up(kept, console)
    with bars() as shown:
        task = shown.add_task("cross-validating", total=search.count(store.facts))
        training, served = train(
            store,
            search,
            fitting=fitting,
            kept=kept,
            advance=lambda what: shown.update(task, advance=1, description=f"cross-validating {what}"),
        )
    draft.write_trained(training, served)
    console.print(candidates_table(training))
    for line in worth(training):
        console.print(line, soft_wrap=True)
    console.print(f"{in_one_line(training)} Next: probes calibrate {arguments.into}", soft_wrap=True)
    return 0


def _take_up(kept: Journal, console: Console) -> None:
    """Say what becomes of what an earlier run left."""
    if not kept.load():
        console.print(
            f"{kept.path} is of another training (its texts, seed or versions differ): not used",
            soft_wrap=True,
            markup=False,
        )
    elif len(kept):
        console.print(f"going on: {len(kept)} fits were done before", soft_wrap=True)


def _fitting(search: Search) -> Fitting:
    from probes.training.ray_sums import ByRay

    return ByRay(search.kinds)


def _search(arguments: argparse.Namespace, store: Any) -> Search:
    from probes.training.ray_sums import SUMMED
    from probes.training.search import DEFAULT_KINDS, Search

    return Search(
        name=_name(arguments),
        description=arguments.description,
        kinds=arguments.kinds or (SUMMED if arguments.ray else DEFAULT_KINDS),
        tap_points=None if arguments.layers is None else _tap_points("--layers", arguments.layers, store),
        aggregations=None if arguments.aggregations is None else tuple(map(aggregation, arguments.aggregations)),
        strengths=None if arguments.strengths is None else tuple(map(_strength, arguments.strengths)),
        everywhere=arguments.everywhere,
        concatenate=_together(arguments.concatenate, store),
        seed=arguments.seed,
    )


def _name(arguments: argparse.Namespace) -> str:
    """An artifact's name is a metric label for years: refused here, not after an hour of training."""
    import re

    name = arguments.into.resolve().name.replace("-", "_") if arguments.name is None else arguments.name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise LabError(f"{name!r} is no name for a probe: want small letters, digits and _, a letter first (--name)")
    return str(name)


def _together(layers: tuple[str, ...] | None, store: Any) -> Places | None:
    return None if layers is None else tuple(sorted(_tap_points("--concatenate", layers, store)))


def _tap_points(option: str, layers: tuple[str, ...], store: Any) -> Places:
    """A number is every collected site of that block; a tap point's whole name is itself."""
    from sidecar.types import TapPoint

    there = [TapPoint.parse(name) for name in store.facts.tap_points]
    found: list[TapPoint] = []
    for text in layers:
        meant = [where for where in there if text in {str(where.layer), where.name}]
        if not meant:
            raise LabError(f"{option} {text}: {store.folder} has {', '.join(where.name for where in there)}")
        found.extend(meant)
    return tuple(found)


def aggregation(text: str) -> Aggregation:
    """Parse an aggregation such as ``max_ema:20``, ``coherence:10:3`` or ``multimax:4``. Raises LabError with what is wrong."""
    from pydantic import ValidationError

    from probes.manifest import Aggregation

    kind, *numbers = text.split(":")
    names = ("heads",) if kind == "multimax" else ("window", "agree")
    if len(numbers) > len(names):
        raise LabError(f"aggregation {text!r}: want {':'.join((kind, *names))}")
    try:
        return Aggregation.model_validate({"kind": kind, **dict(zip(names, numbers, strict=False))})
    except ValidationError as error:
        raise LabError(f"aggregation {text!r}: {error.errors()[0]['msg']}") from None


def _strength(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise LabError(f"--strengths: {text!r} is not a number") from None
