"""The circuits that are shipped: each is what its recipe gives on SmolLM2, and says of itself what its gates say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import Field, ValidationError

from probes.circuits.choosing import SHARE
from probes.circuits.draft import DRAFT, DraftCircuit, read_draft
from probes.circuits.reporting.page import write_report
from probes.circuits.validation.bench import Settings
from probes.circuits.validation.claim import About, claim_of
from probes.circuits.validation.validate import validate_circuit
from probes.errors import LabError
from probes.manifest.fields import Share, Text

if TYPE_CHECKING:
    from rich.progress import Progress

    from probes.activations.model import LabModel
    from probes.circuits.manifest import CircuitManifest

RECIPES = Path(__file__).parent / "recipes"
SHIPPED = Path(__file__).parent / "shipped"


class Recipe(About):
    """How a shipped circuit is made. discovery, validation: sets of pairs; of the latter, those that are in both are left out."""

    discovery: Text
    validation: Text
    share: Share = SHARE
    randoms: Annotated[int, Field(ge=1)] = Settings().randoms

    @property
    def about(self) -> About:
        return About.model_validate({name: getattr(self, name) for name in About.model_fields})


def recipe_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def read_recipe(name: str) -> Recipe:
    """Raises LabError if there is no such recipe, or if it is none."""
    try:
        return Recipe.model_validate(yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")))
    except OSError:
        raise LabError(f"no recipe for {name}; there are: {', '.join(recipe_names())}") from None
    except (ValidationError, yaml.YAMLError) as error:
        raise LabError(f"the recipe of {name}: {error}") from None


def ship(name: str, lab: LabModel, into: Path, bars: Progress) -> CircuitManifest:
    """Discover, validate and report a circuit into ``into / name``; a draft that is there is gone on from. The same each time."""
    recipe, folder = read_recipe(name), into / name
    draft = _draft(name, recipe, lab, folder, bars)
    claim = claim_of(
        draft,
        lab,
        about=recipe.about,
        pairs=recipe.validation,
        without=recipe.discovery,
        share=recipe.share,
        bars=bars,
    )
    task = bars.add_task(name, total=None)
    settings = Settings(randoms=recipe.randoms, told=lambda text: bars.update(task, description=f"{name}: {text}"))
    found = validate_circuit(lab, claim, folder, settings)
    write_report(found, folder)
    return found


def _draft(name: str, recipe: Recipe, lab: LabModel, folder: Path, bars: Progress) -> DraftCircuit:
    from probes.circuits.behaviours import find_pairs
    from probes.circuits.discovery import discover
    from probes.circuits.drafting import Settings as Discovery
    from probes.circuits.picture import write_tracing

    pairs = find_pairs(recipe.discovery, lab)
    if (folder / DRAFT).is_file():
        draft = read_draft(folder)
        draft.must_be_of(pairs, lab.binding)
        return draft
    draft = discover(lab, pairs, Discovery(name, method="exact"), folder, bars)
    write_tracing(draft, folder)
    return draft
