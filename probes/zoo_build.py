"""Make shipped artifacts: probes by their recipes, positive controls around their blocks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from probes.errors import LabError
from probes.manifest import Manifest
from probes.recipe import LAYERS, Recipe, read_recipes

if TYPE_CHECKING:
    from rich.progress import Progress

_CONTROL_LICENCE = "the probes' own sets, see their manifests"


def artifact_names() -> tuple[str, ...]:
    """All that can be built: probes, then controls."""
    from probes.build_control import ControlRecipe

    return (*read_recipes(), *(ControlRecipe(layer).name for layer in LAYERS))


def build_all(
    names: Sequence[str], into: Path, bars: Progress, *, keep: bool = False, limit: int = 0
) -> list[Manifest]:
    """Make the named artifacts in ``into``, one sub-folder each: probes first, then controls.

    keep: leave activations and drafts in the cache folder. limit: at most so many texts of each set, to see that it works; 0: as
    the recipes say. Raises LabError; what is finished is kept then, and the same call goes on from there.
    """
    from probes.smollm2 import ModelNotInstalledError, prepared_model

    try:
        model = prepared_model(progress=False)
    except ModelNotInstalledError as error:
        raise LabError(str(error)) from None
    recipes = read_recipes()
    wanted = [recipes[name] for name in names if name in recipes]
    manifests = [_probe(recipe.smaller(limit) if limit else recipe, model, into, bars, keep=keep) for recipe in wanted]
    return manifests + _controls([name for name in names if name not in recipes], model, into, bars)


def _probe(recipe: Recipe, model: Path, into: Path, bars: Progress, *, keep: bool) -> Manifest:
    from probes.zoo_probe import Bench, build_probe

    work = _work()
    manifest = build_probe(recipe, Bench(model, work, bars), into / recipe.name)
    if not keep:
        shutil.rmtree(work / recipe.name)
    return manifest


def _work() -> Path:
    from probes.smollm2 import cache_folder

    return cache_folder() / "zoo"


def _controls(names: Sequence[str], model: Path, into: Path, bars: Progress) -> list[Manifest]:
    from probes.activations.model import open_model
    from probes.build_control import ControlRecipe, build_control
    from probes.control_texts import fed_halves
    from probes.zoo_texts import gather_for_controls

    wanted = [ControlRecipe(layer) for layer in LAYERS if ControlRecipe(layer).name in names]
    if not wanted:
        return []
    lab = open_model(model)
    with TemporaryDirectory() as work:
        halves = fed_halves(lab, gather_for_controls(Path(work)), _CONTROL_LICENCE, bars)
    return [build_control(control, lab, halves, into / control.name, bars) for control in wanted]
