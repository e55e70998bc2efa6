"""What the shipped artifacts are made from. Changing a number here means building the zoo again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from probes.datasets import Source

ZOO = Path(__file__).parent / "zoo" / "smollm2-135m"
SURVEY = ZOO / "survey.json"
SURVEY_LAYERS = (6, 8, 10, 12, 14, 16, 18, 20, 22)
# Every tap point costs the engine time at every step, so all probes share two. By the survey (`probes zoo survey`), offensive
# language and spam are read best in the early blocks, sentiment from block 14 on.
LAYERS = (8, 14)
TEXT_LIMIT = 2000
TARGET_FPR = 0.05
VERSION = "1.0.0"
LICENCE = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class ProbeRecipe:
    name: str
    description: str
    source: Source


@dataclass(frozen=True, slots=True)
class ControlRecipe:
    """A positive control for one layer, told apart from the layers up to ``reach`` blocks away."""

    layer: int
    reach: int = 2

    @property
    def name(self) -> str:
        return f"control_{self.layer:02d}"

    @property
    def neighbours(self) -> tuple[int, ...]:
        return tuple(
            layer for layer in range(self.layer - self.reach, self.layer + self.reach + 1) if layer != self.layer
        )


PROBES = (
    ProbeRecipe(
        "sentiment",
        "Whether the user's message speaks well or badly of something.",
        Source(
            file="92_glue_sst2.csv.zst",
            name="SST-2 of GLUE: phrases from film reviews",
            licence="none stated by its makers; research use; rows are not redistributed",
            positive="positive",
            negative="negative",
        ),
    ),
    ProbeRecipe(
        "offensive_language",
        "Whether the user's message uses offensive language.",
        Source(
            file="107_hate_offensive.csv.zst",
            name="Hate speech and offensive language (Davidson et al. 2017): tweets",
            licence="MIT",
            positive="offensive",
            negative="neither offensive nor hateful",
            tweets=True,
            exclude="106_hate_hate.csv.zst",
        ),
    ),
    ProbeRecipe(
        "spam",
        "Whether the user's message reads like advertising spam.",
        Source(
            file="96_spam_is.csv.zst",
            name="SMS Spam Collection (Almeida and Hidalgo 2011): text messages",
            licence="CC BY 4.0",
            positive="spam",
            negative="ordinary message",
        ),
    ),
)
CONTROLS = tuple(ControlRecipe(layer) for layer in LAYERS)
Recipe: TypeAlias = ProbeRecipe | ControlRecipe
_ALL: tuple[Recipe, ...] = (*PROBES, *CONTROLS)
RECIPES = {recipe.name: recipe for recipe in _ALL}
