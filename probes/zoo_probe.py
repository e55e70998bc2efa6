"""From a recipe to a shipped probe: every stage of the lab, one after the other, each with its progress."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probes.artifact import MANIFEST
from probes.draft import Draft
from probes.manifest import Manifest
from probes.recipe import Recipe
from probes.zoo_texts import gather
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress

    from probes.activations.store import ActivationStore
    from probes.data.reading import Loaded


@dataclass(frozen=True, slots=True)
class Bench:
    """Where probes are made. model: a local folder. work: what a run that was cut off goes on from; it may be deleted after."""

    model: Path
    work: Path
    bars: Progress


def build_probe(recipe: Recipe, bench: Bench, into: Path) -> Manifest:
    """Collect, train, calibrate, evaluate, validate, report and pack; ``into`` gets the artifact and its report.

    A probe whose gates fail is packed as failed: its manifest says so, and why. If ``into`` holds an artifact already, its version
    is raised by what has changed. Raises LabError; what is finished stays in ``bench.work``, and the same call goes on from there.
    """
    work = bench.work / recipe.name
    material = gather(recipe, work / "texts")
    store = _collected(recipe, material.texts, work / "activations", bench)
    benign = None
    if material.benign is not None:
        benign = _collected(recipe, material.benign, work / "benign", bench)
    draft = Draft(work / "draft")
    _train(recipe, draft, store, bench.bars)
    _calibrate(recipe, draft, store, benign)
    _evaluate(recipe, draft, store, bench.bars)
    _validate(recipe, draft, bench)
    return _packed(recipe, draft, into)


def collected(recipe: Recipe, bench: Bench) -> ActivationStore:
    """The activations of a recipe's texts, where `build_probe` keeps them."""
    work = bench.work / recipe.name
    return _collected(recipe, gather(recipe, work / "texts").texts, work / "activations", bench)


def _collected(recipe: Recipe, texts: Loaded, into: Path, bench: Bench) -> ActivationStore:
    from probes.activations.collect import Options, collect
    from probes.activations.feeding import Feeding

    options = Options(layers=recipe.store_layers, feeding=Feeding(chat=True), licence=recipe.data_licence)
    if (into / "facts.json").exists() and not _is_of(into, texts):
        shutil.rmtree(into)
    return collect(bench.model, texts, into, options, bench.bars).store


def _is_of(folder: Path, texts: Loaded) -> bool:
    """Whether activations that are there are those of these texts: a recipe that was changed begins anew."""
    from probes.activations.store import ActivationStore
    from probes.errors import LabError

    try:
        return ActivationStore.open(folder).facts.data_digest == texts.digest
    except LabError:
        return True  # unfinished: collecting goes on, or says what else it is


def _train(recipe: Recipe, draft: Draft, store: ActivationStore, bars: Progress) -> None:
    from probes.training.search import Search
    from probes.training.train import fingerprint, train

    search = Search(
        name=recipe.name,
        description=recipe.description,
        kinds=recipe.kinds,
        tap_points=tuple(TapPoint(layer) for layer in recipe.layers),
        seed=recipe.seed,
    )
    task = bars.add_task(f"{recipe.name}: training", total=search.count(store.facts))
    kept = draft.fits(fingerprint(store, search))
    kept.load()
    training, served = train(store, search, kept=kept, advance=lambda _: bars.advance(task))
    draft.write_trained(training, served)


def _calibrate(recipe: Recipe, draft: Draft, store: ActivationStore, benign: ActivationStore | None) -> None:
    from probes.quality.calibration import calibrate

    draft.write(calibrate(draft, store, fpr=recipe.fpr, benign=benign))


def _evaluate(recipe: Recipe, draft: Draft, store: ActivationStore, bars: Progress) -> None:
    from probes.quality.evaluation import STEPS, evaluate

    task = bars.add_task(f"{recipe.name}: testing", total=1 + len(STEPS))

    def step(what: str) -> None:
        bars.update(task, advance=1, description=f"{recipe.name}: {what}")

    draft.write(evaluate(draft, store, seed=recipe.seed, step=step))
    bars.update(task, advance=1, description=f"{recipe.name}: tested")


def _validate(recipe: Recipe, draft: Draft, bench: Bench) -> None:
    from probes.activations.model import open_model
    from probes.causal.case import Settings
    from probes.causal.validation import validate

    proof = recipe.validation
    settings = Settings(
        behaviour=recipe.behaviour,
        budget_s=proof.budget_s,
        randoms=proof.randoms,
        texts=proof.texts,
        seed=recipe.seed,
    )
    validate(draft, open_model(bench.model), settings, bench.bars)


def _packed(recipe: Recipe, draft: Draft, into: Path) -> Manifest:
    from probes.release.pack import pack
    from probes.reporting.report import write_report

    previous = into if (into / MANIFEST).exists() else None
    manifest = pack(draft.folder, into, licence=recipe.licence, previous=previous, failed=True)
    write_report(draft.folder, into)
    return manifest
