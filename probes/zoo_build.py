"""Make shipped artifacts: probes by their recipes, positive controls around their blocks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from probes.errors import LabError
from probes.manifest import Manifest
from probes.recipe import Recipe, read_recipes

if TYPE_CHECKING:
    from rich.progress import Progress


def artifact_names() -> tuple[str, ...]:
    """All that can be built: probes, then controls."""
    from probes.build_control import CONTROLS

    return (*read_recipes(), *(control.name for control in CONTROLS))


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
    return manifests + _controls([name for name in names if name not in recipes], model, into, bars, keep=keep)


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


def _controls(names: Sequence[str], model: Path, into: Path, bars: Progress, *, keep: bool) -> list[Manifest]:
    from probes.build_control import CONTROLS, build_control, everyday_chats
    from probes.collect import load_lab_model

    wanted = [control for control in CONTROLS if control.name in names]
    if not wanted:
        return []
    lab = load_lab_model(model)
    with _states(keep=keep):
        chats = everyday_chats(lab, bars)
        return [build_control(control, lab, into / control.name, bars, chats) for control in wanted]


@contextmanager
def _states(*, keep: bool) -> Iterator[None]:
    """Delete the states that controls are made from, unless they are to be used again."""
    from probes.states import forget_states

    try:
        yield
    finally:
        if not keep:
            forget_states()
