"""A recipe: what a shipped probe is made from, in one YAML file, so that anyone can make it again or make another like it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from probes.causal.behaviour import Behaviour
from probes.errors import LabError
from probes.manifest import Name, Text

RECIPES = Path(__file__).parent / "zoo" / "recipes"
ZOO = Path(__file__).parent / "zoo" / "smollm2-135m"
# Every tap point costs the engine time at every step, so all shipped probes share two.
LAYERS = (8, 14)
# What is collected beside them, to compare with: states that the model has hardly worked on.
FIRST_LAYER = 0
_SIZE_LIMIT_BYTES = 64 << 10
_TRIAL_S = 30.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clean(StrEnum):
    """How a set's texts become what a chat user would send."""

    PLAIN = "plain"  # entities and runs of space
    TWEET = "tweet"  # and retweet marks, addressees, links
    CODE = "code"  # nothing but the space at both ends of it


class TextSet(_Strict):
    """One labelled set of texts.

    source: ``sae:NAME``, a set of the package sae-probes; ``bastioncorpus``, the package of that name; or a file of written
    pairs (see `probes.zoo_pairs`). positive: which of its labels is the positive one; "": none is, every text is benign.
    limit: at most so many texts, half under each label; 0: all. clip: at most so many characters of a text. without: another
    set, whose positive texts are no benign texts of this one.
    """

    source: str
    name: Text
    licence: Text
    positive: str = "1"
    clean: Clean = Clean.PLAIN
    limit: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[int, Field(ge=0)] = 0
    without: str = ""


class Proof(_Strict):
    """How much is spent on asking whether the model uses what is read; see `probes.causal.case.Settings`."""

    budget_s: Annotated[float, Field(gt=0)] = 900.0
    texts: Annotated[int, Field(ge=16)] = 48
    randoms: Annotated[int, Field(ge=19)] = 20


class Recipe(_Strict):
    """One shipped probe.

    benign: more sets, whose negative texts help to set the threshold. outside: sets on which it is measured and nothing more.
    behaviour: what the model is asked about each text, for the validation. licence: of the artifact; sets have their own.
    """

    name: Name
    description: Text
    positive: Text
    negative: Text
    texts: Annotated[tuple[TextSet, ...], Field(min_length=1)]
    benign: tuple[TextSet, ...] = ()
    outside: tuple[TextSet, ...] = ()
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = LAYERS
    kinds: Annotated[tuple[str, ...], Field(min_length=1)]
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seed: Annotated[int, Field(ge=0)] = 0
    behaviour: Behaviour
    validation: Proof = Proof()
    licence: Text = "Apache-2.0"

    @field_validator("kinds")
    @classmethod
    def _kinds_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from probes.kinds.registry import KINDS

        if unknown := [name for name in names if name not in KINDS]:
            raise ValueError(f"there is no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
        return names

    @property
    def store_layers(self) -> str:
        """What to collect, as `probes.activations.layers.parse_layers` reads it."""
        return ",".join(str(layer) for layer in sorted({FIRST_LAYER, *self.layers}))

    @property
    def data_licence(self) -> str:
        return "; ".join(f"{one.name}: {one.licence}" for one in (*self.texts, *self.benign))

    def smaller(self, limit: int) -> Recipe:
        """The same recipe to try out: at most ``limit`` texts of each set but written pairs, half a minute of validation."""
        if limit < 2:
            raise LabError("--limit must leave a text of each label: at least 2")
        changed: dict[str, Any] = {
            part: tuple(one.model_copy(update={"limit": min(one.limit or limit, limit)}) for one in getattr(self, part))
            for part in ("texts", "benign", "outside")
        }
        short = min(self.validation.budget_s, _TRIAL_S)
        changed["validation"] = self.validation.model_copy(update={"budget_s": short})
        return self.model_copy(update=changed)


def read_recipe(path: Path) -> Recipe:
    """Raises LabError naming the file and the field that is wrong."""
    import yaml

    try:
        told = yaml.safe_load(path.read_bytes()[:_SIZE_LIMIT_BYTES])
        recipe = Recipe.model_validate(told)
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        raise LabError(f"{path}: {'; '.join(_problem(one) for one in error.errors())}") from None
    if path.stem != recipe.name:
        raise LabError(f"{path}: the recipe is called {recipe.name}; its file must be {recipe.name}.yaml")
    return recipe


def read_recipes(folder: Path = RECIPES) -> Mapping[str, Recipe]:
    """Every recipe in the folder by name, sorted. Raises LabError as `read_recipe` does."""
    return {path.stem: read_recipe(path) for path in sorted(folder.glob("*.yaml"))}


def _problem(error: Any) -> str:
    return f"{'.'.join(str(part) for part in error['loc']) or 'the file'}: {error['msg']}"
