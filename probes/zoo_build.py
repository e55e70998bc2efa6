"""Make many shipped artifacts with one loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probes.build import build_probe
from probes.build_control import build_control, everyday_chats
from probes.collect import load_lab_model
from probes.manifest import Manifest
from probes.recipes import RECIPES, ControlRecipe, ProbeRecipe
from probes.smollm2 import prepared_model

if TYPE_CHECKING:
    from rich.progress import Progress


def build_all(names: Sequence[str], into: Path, bars: Progress) -> list[Manifest]:
    """Make the named artifacts in ``into``, one sub-folder each: probes first, then controls."""
    lab = load_lab_model(prepared_model(progress=False))
    recipes = [RECIPES[name] for name in names]
    probes = [recipe for recipe in recipes if isinstance(recipe, ProbeRecipe)]
    controls = [recipe for recipe in recipes if isinstance(recipe, ControlRecipe)]
    manifests = [build_probe(probe, lab, into / probe.name, bars) for probe in probes]
    if controls:
        chats = everyday_chats(lab, bars)
        manifests += [build_control(control, lab, into / control.name, bars, chats) for control in controls]
    return manifests
