"""Training and testing one probe, three ways on the same activations: ``python -m bench.lab [--store ACTS] [--short]``.

Ours, scikit-learn used plainly, and probelab (of the dev extra) get the same training texts at the same tap point and are measured
on the same test texts. They take turns on one thread; each turn reads the activations from the same store, fits, and scores the
test texts. Without ``--store`` the activations are those of the recipe for the sentiment probe, collected into the cache folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.machine import describe
from bench.row import median_interval
from probes.activations.store import ActivationStore
from probes.data.parts import assign_parts
from probes.errors import LabError
from probes.quality.bootstrap import Resamples
from probes.quality.measures import operating_point
from probes.quality.rows import Rows, rows_at
from probes.stages import Part
from sidecar.types import TapPoint

Array = npt.NDArray[np.float64]
RESULTS = Path(__file__).parent / "lab.json"
OURS = "ours, logistic"
_FPR = 0.01
_LAYER = 14


@dataclass(frozen=True, slots=True)
class Split:
    """The texts of a store that everybody trains on and is tested on, at one tap point."""

    store: ActivationStore
    where: TapPoint
    train: Rows
    test: Rows

    def rows(self, part: Rows) -> list[npt.NDArray[np.float32]]:
        """Each text's states, float32 [n, D], read anew."""
        return list(self.store.at(self.where, part.at))

    def means(self, part: Rows) -> npt.NDArray[np.float32]:
        return np.stack([rows.mean(axis=0) for rows in self.store.at(self.where, part.at)])


# Fits on the training texts and gives the test texts' scores.
Contender = Callable[[Split], Array]


@dataclass(frozen=True, slots=True)
class Result:
    """tpr: at `_FPR`. seconds: median of the turns, with its interval; slower: than ours, turn by turn."""

    name: str
    auroc: float
    auroc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    seconds: float
    seconds_interval: tuple[float, float]
    slower: float
    slower_interval: tuple[float, float]
    note: str


def ours(kind: str) -> Contender:
    """As `probes train` does with this kind alone: aggregation and strength by cross-validation, then a fit on all."""

    def run(split: Split) -> Array:
        from probes.kinds.beside import states_at
        from probes.training.candidates import Rows as Learning
        from probes.training.candidates import Survey, ways
        from probes.training.choice import best_of
        from probes.training.fitting import Here
        from probes.training.folds import units

        everywhere = (split.where,)
        groups = units(split.train.texts)
        learn = Learning(split.train.labels, groups, lambda at: states_at(split.store, at, split.train.at))
        survey = Survey(learn, Here(), None, seed=0, advance=lambda _: None)
        best = best_of(survey([everywhere], ways((kind,), None, None)))
        way = next(
            way
            for way in ways((kind,), None, None)
            if (way.aggregation, way.strength) == (best.aggregation, best.strength)
        )
        fitted = way.make(0).fit(learn.at(everywhere), learn.labels, learn.groups)
        return np.asarray(fitted.decision_function(split.store.at(split.where, split.test.at)))

    return run


def scikit_learn(split: Split) -> Array:
    """The usual notebook: mean-pooled, standardised, `LogisticRegressionCV` as it comes."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegressionCV(**_cv_options()))
    model.fit(split.means(split.train), split.train.labels)
    return np.asarray(model.decision_function(split.means(split.test)), dtype=np.float64)


def _cv_options() -> dict[str, Any]:
    """Its own defaults, with the area under the curve as score and steps enough to converge."""
    return {"cv": 5, "scoring": "roc_auc", "max_iter": 2000, "l1_ratios": (0.0,), "use_legacy_attributes": False}


def probelab_logistic(split: Split) -> Array:
    """Its quick start: a mean over tokens, `Logistic` as it comes."""
    import probelab
    import torch

    seen, unseen = (torch.from_numpy(split.means(part)) for part in (split.train, split.test))
    probe = probelab.probes.Logistic(seed=0)
    probe.fit(probelab.Activations(seen, dims="bh"), torch.from_numpy(split.train.labels.astype(np.int64)))
    return np.asarray(probe.predict_logits(probelab.Activations(unseen, dims="bh")).detach(), dtype=np.float64)


def probelab_attention(split: Split) -> Array:
    """Its attention probe as it comes, on the texts' rows."""
    import probelab
    import torch

    def padded(part: Rows) -> Any:
        rows = split.rows(part)
        data = torch.zeros(len(rows), max(map(len, rows)), rows[0].shape[1])
        mask = torch.zeros(data.shape[:2], dtype=torch.bool)
        for at, one in enumerate(rows):
            data[at, : len(one)] = torch.from_numpy(one)
            mask[at, : len(one)] = True
        return probelab.Activations(data, dims="bsh", detection_mask=mask, attention_mask=mask)

    probe = probelab.probes.Attention(seed=0)
    probe.fit(padded(split.train), torch.from_numpy(split.train.labels.astype(np.int64)))
    return np.asarray(probe.predict_logits(padded(split.test)).detach(), dtype=np.float64)


CONTENDERS: Mapping[str, tuple[Contender, str]] = {
    OURS: (ours("logistic"), "aggregation and strength by cross-validation: 60 fits"),
    "ours, mass-mean": (ours("mass_mean"), "the same, a whitened difference of means"),
    "ours, attention": (ours("attention"), "the same, 15 fits"),
    "scikit-learn, LogisticRegressionCV": (scikit_learn, "mean-pooled, standardised: 50 fits"),
    "probelab, Logistic": (probelab_logistic, "mean-pooled, its own defaults: 1 fit"),
    "probelab, Attention": (probelab_attention, "its own defaults: 1 fit"),
}


def measure(split: Split, rounds: int) -> list[Result]:
    """Every contender ``rounds`` times, every other time in the opposite order."""
    from threadpoolctl import threadpool_limits

    names = list(CONTENDERS)
    spent: dict[str, list[float]] = {name: [] for name in names}
    scores: dict[str, Array] = {}
    with threadpool_limits(1):
        for number in range(rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                began_s = time.perf_counter()
                scores[name] = CONTENDERS[name][0](split)
                spent[name].append(time.perf_counter() - began_s)
    return [_result(name, scores[name], spent, split) for name in names]


def _result(name: str, scores: Array, spent: Mapping[str, list[float]], split: Split) -> Result:
    labels = split.test.labels
    ranks = np.argsort(np.argsort(scores, kind="stable")) / len(scores)
    point = operating_point(scores, ranks, labels, _FPR)
    seconds, seconds_interval = median_interval(spent[name])
    slower, slower_interval = median_interval(np.array(spent[name]) / np.array(spent[OURS]))
    return Result(
        name=name,
        auroc=_auroc(scores, labels),
        auroc_interval=Resamples(labels, split.test.groups, 0).auroc(scores),
        tpr=point.tpr,
        tpr_interval=point.tpr_interval,
        seconds=seconds,
        seconds_interval=seconds_interval,
        slower=slower,
        slower_interval=slower_interval,
        note=CONTENDERS[name][1],
    )


def _auroc(scores: Array, labels: npt.NDArray[np.bool_]) -> float:
    from probes.auroc import auroc

    return auroc(scores, labels)


def split_of(store: ActivationStore, where: TapPoint, limit: int = 0) -> Split:
    """The parts that `probes train` makes, at most ``limit`` training texts."""
    parts = assign_parts(store.texts, 0, outside=frozenset(store.facts.outside))
    train, test = ([at for at, part in enumerate(parts) if part is wanted] for wanted in (Part.TRAIN, Part.TEST))
    return Split(store, where, rows_at(store, train[: limit or None]), rows_at(store, test))


def sentiment_store() -> ActivationStore:
    """The activations of the sentiment recipe, collected now if they are not in the cache folder."""
    from rich.console import Console
    from rich.progress import Progress

    from probes.recipe import read_recipes
    from probes.smollm2 import cache_folder, prepared_model
    from probes.zoo_probe import Bench, collected

    work = cache_folder() / "bench"
    with Progress(console=Console(stderr=True)) as bars:
        return collected(read_recipes()["sentiment"], Bench(prepared_model(progress=False), work, bars))


def _show(split: Split, results: list[Result]) -> None:
    print(f"{len(split.train)} training and {len(split.test)} test texts at {split.where.name}")
    print(f"{'':36}{'AUROC':>24}{'TPR at 1 % FPR':>24}{'seconds':>10}{'of ours':>9}")
    for one in results:
        low, high = one.auroc_interval
        worse, better = one.tpr_interval
        print(
            f"{one.name:36}{one.auroc:8.3f} [{low:.3f}, {high:.3f}]{one.tpr:8.1%} [{worse:.1%}, {better:.1%}]"
            f"{one.seconds:10.2f}{one.slower:9.2f}  {one.note}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lab", description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, metavar="ACTS", help="a folder that `probes collect` wrote")
    parser.add_argument("--layer", type=int, default=_LAYER)
    parser.add_argument("--short", action="store_true", help="one turn on 120 texts, and nothing is written")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        store = sentiment_store() if arguments.store is None else ActivationStore.open(arguments.store)
        split = split_of(store, TapPoint(arguments.layer), 120 if arguments.short else 0)
        results = measure(split, 1 if arguments.short else 5)
    except LabError as error:
        print(f"bench.lab: {error}", file=sys.stderr)
        return 1
    _show(split, results)
    if not arguments.short:
        machine = describe() | {"probelab": version("probelab")}
        told = {"machine": machine, "train": len(split.train), "test": len(split.test), "at": split.where.name}
        RESULTS.write_text(json.dumps(told | {"results": [asdict(one) for one in results]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
