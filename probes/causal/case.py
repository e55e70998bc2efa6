"""A probe, its store, its model and how they are put to the test; and what is made ready once, before any intervention."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.causal.behaviour import Behaviour, contrast
from probes.causal.bench import Bench, Stand
from probes.causal.directions import Null, spread, subspace
from probes.causal.effects import FEWEST_RANDOMS
from probes.causal.erasure import Erasure, Refit, fit_erasure, pooled, refit
from probes.causal.pairs import paired
from probes.causal.questions import Limits, Questions, questions
from probes.causal.resume import Resumed
from probes.draft import Draft
from probes.errors import LabError
from probes.quality.rows import Rows, rows_of
from probes.stages import Part
from probes.weights import dump_weights

if TYPE_CHECKING:
    from rich.progress import Progress

    from probes.activations.model import LabModel
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """behaviour: None asks which of the probe's two labels fits. budget_s: for the passes with edits.

    texts: how many test texts at most, half of each label. steer: numbers of standard deviations; see `probes.causal.evidence`.
    """

    behaviour: Behaviour | None = None
    budget_s: float = 300.0
    randoms: int = 20
    texts: int = 64
    max_tokens: int = 1024
    steer: tuple[float, ...] = (2.0,)
    null: Null = Null.MATCHED
    seed: int = 0

    def check(self) -> None:
        """Raises LabError for what could not work."""
        if self.randoms < FEWEST_RANDOMS:
            raise LabError(f"with fewer than {FEWEST_RANDOMS} random directions no effect could be told from chance")
        if not self.steer or not all(0 < multiple < math.inf for multiple in self.steer):
            raise LabError("steering wants numbers of standard deviations above 0")
        if not self.budget_s > 0:
            raise LabError("the budget must be above 0 seconds")


@dataclass(frozen=True, slots=True)
class Case:
    """Made by `open_case`."""

    draft: Draft
    lab: LabModel
    store: ActivationStore
    settings: Settings
    behaviour: Behaviour

    @property
    def max_tokens(self) -> int:
        """Of a prompt: what was asked for, or what the model reads if that is less."""
        config = self.lab.model.config.get_text_config(decoder=True)
        reads = getattr(config, "max_position_embeddings", None)
        return min(self.settings.max_tokens, reads or self.settings.max_tokens)

    def questions(self) -> Questions:
        """Raises LabError if there are too few test texts to ask about."""
        rows = rows_of(self.store, self.draft.training, Part.TEST)
        limits = Limits(self.settings.texts, self.max_tokens, self.settings.seed)
        return questions(self.lab.tokenizer, self.behaviour, self.store.facts, rows.texts, limits)

    def bench(self, bars: Progress) -> tuple[Bench, Refit]:
        """Ask the untouched model, fit the erasure, and lay out all that interventions need."""
        asked = self.questions()
        everywhere = self.draft.training.everywhere
        resumed = Resumed(self.lab.model, everywhere, asked.answers, self.store.facts.skip_positions)
        task = bars.add_task(f"asking about {len(asked.prompts)} texts", total=len(asked.prompts))
        resumed.begin(asked.prompts, lambda count: bars.advance(task, count))
        pairs, how = paired(asked.pairs, asked.labels, asked.lengths)
        train, test = (rows_of(self.store, self.draft.training, part) for part in (Part.TRAIN, Part.TEST))
        seen, unseen = (self._pooled(rows) for rows in (train, test))
        erasures = [fit_erasure(states, train.labels) for states in seen]
        bench = Bench(
            resumed=resumed,
            questions=asked,
            measure=self.behaviour.measure,
            stands=tuple(self._stand(number, resumed, erasure) for number, erasure in enumerate(erasures)),
            pairs=pairs,
            paired=how,
            null=self.settings.null,
            randoms=self.settings.randoms,
            seed=self.settings.seed,
        )
        return bench, refit(erasures, seen, train.labels, unseen, test.labels)

    def _pooled(self, rows: Rows) -> list[Array]:
        """At each tap point, one state a text."""
        training = self.draft.training
        return [pooled(self.store.at(where), rows.at, training.aggregation) for where in training.everywhere]

    def _stand(self, number: int, resumed: Resumed, erasure: Erasure) -> Stand:
        states = tuple(resumed.states(number))
        parts = self.draft.served.apart(len(resumed.everywhere))
        null, seed = self.settings.null, self.settings.seed
        return Stand(number, subspace(parts[number]), spread(states), states, erasure, null, seed)

    def fingerprint(self, asked: Questions) -> str:
        """Hex SHA-256 of all that a pass's log-odds depend on: passes of another probe, question or model are never taken up."""
        served, training = self.draft.served, self.draft.training
        told = [
            self.store.digest,
            self.lab.identity.weights_digest,
            [where.name for where in training.everywhere],
            [part.value for part in training.parts],
            training.aggregation.model_dump(mode="json"),
            [self.settings.null.value, self.settings.seed],
            [asked.prompts, asked.answers],
        ]
        weights = dump_weights(served.directions, served.offsets)
        return hashlib.sha256(json.dumps(told).encode() + weights).hexdigest()


def open_case(draft: Draft, lab: LabModel, settings: Settings) -> Case:
    """Raises LabError if settings cannot work, the activations are gone, or the model is not the one that they come from."""
    from probes.activations.store import ActivationStore

    settings.check()
    training = draft.training
    store = ActivationStore.open(Path(training.store))
    _must_match(store, lab)
    behaviour = settings.behaviour or contrast(training.positive_label, training.negative_label, chat=store.facts.chat)
    return Case(draft, lab, store, settings, behaviour)


def _must_match(store: ActivationStore, lab: LabModel) -> None:
    """Refuse a model that the activations do not come from, naming both sides."""
    made, here = store.facts.model, lab.identity
    sides = [
        ("architecture", made.architecture, here.architecture),
        ("blocks", made.layers, here.layers),
        ("width", store.facts.width, here.width),
        ("tokenizer digest", made.tokenizer_digest, here.tokenizer_digest),
        ("weights digest", made.weights_digest, here.weights_digest),
        ("chat template digest", store.facts.chat_template_digest, lab.template_digest if store.facts.chat else ""),
    ]
    others = [f"{what} {_short(theirs)} there, {_short(ours)} here" for what, theirs, ours in sides if theirs != ours]
    if others:
        raise LabError(f"{store.folder} was collected on another model ({made.name}): {'; '.join(others)}")


def _short(value: object) -> str:
    return str(value)[:40] or "none"
