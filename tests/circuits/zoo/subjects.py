"""The models of the zoo with their circuits, and for each of their numerics what traffic and canaries are on every variant."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from probes.activations.model import LabModel, open_model
from probes.circuits.artifact import Circuit, load_circuit
from probes.circuits.behaviours import find_pairs
from probes.circuits.discovery import discover
from probes.circuits.drafting import Settings
from probes.circuits.shipping import SHIPPED
from probes.cli import main as probes
from sidecar.live.canary_prompts import own
from sidecar.types import ModelIdentity, TapPoint
from tests.circuits.toys import FOLDER
from tests.circuits.zoo.numerics import numerics_of
from tests.circuits.zoo.pools import ANSWERED, RECORDED, Batching, Pool, Round, pool_of, round_of
from tests.circuits.zoo.texts import (
    KINDS,
    PLAIN,
    REPEATING,
    Ids,
    Texts,
    english_canaries,
    english_texts,
    toy_canaries,
    toy_pairs,
    toy_texts,
)
from tests.circuits.zoo.variants import SOUND, Fault, Material, faults_of

TOY, SMOLLM2 = "toy", "smollm2"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, its circuit and what is said to it. artifacts: the folder with the circuit, and with nothing else."""

    name: str
    lab: LabModel
    circuit: Circuit
    artifacts: Path
    texts: Texts
    prompts: tuple[str, ...]  # of canaries
    prompt_ids: Ids
    rate: float  # of fine-tuning: a tenth of that which the toy was trained with, and what is usual for SmolLM2


@dataclass(slots=True)
class Seen:
    """What the engine's tap sees in one kind of numerics.

    recorded: rounds of canaries on the sound model, of which references are made. pools: by fault and kind of text;
    rounds: the answers of later rounds, which are batched otherwise, by fault.
    """

    identity: ModelIdentity
    recorded: tuple[Round, ...] = ()
    pools: dict[tuple[Fault, str], Pool] = field(default_factory=dict)
    rounds: dict[Fault, tuple[Round, ...]] = field(default_factory=dict)

    def faults(self, variant: str) -> tuple[Fault, ...]:
        """The ways of a variant that were seen, in order."""
        return tuple(one for one in self.rounds if one.variant == variant)


def toy_subject(home: Path, seed: int, many: int) -> Subject:
    """The toy, its circuit found and validated here, on one of its two languages."""
    lab, draws = open_model(FOLDER), np.random.default_rng([seed, 1])
    own = np.random.default_rng(5)
    for name, count in (("discovered", 32), ("validated", 64)):
        lines = [json.dumps(one) for one in toy_pairs(count, own)]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    with Progress(disable=True) as bars:
        pairs = find_pairs(str(home / "discovered.jsonl"), lab)
        discover(lab, pairs, Settings("going_on", traced=0), home / "draft", bars)
    usual = toy_texts(160, own)
    lines = [" ".join(f"w{word}" for word in text[1:]) for text in (*usual[PLAIN], *usual[REPEATING])]
    (home / "traffic.txt").write_text("\n".join(lines))
    # Half as many directions as its states have: they hold what 40 words are made of, and not the other 22.
    (home / "about.yaml").write_text("behaviour: goes on\nseverity: page\nbasis: 32\nlicence: Apache-2.0\n")
    given = ["--pairs", home / "validated.jsonl", "--traffic", home / "traffic.txt", "--about", home / "about.yaml"]
    into = home / "artifacts" / "going_on"
    asked = ["validate", home / "draft", "--model", FOLDER, *given, "--share", "0.05", "--into", into]
    if probes([str(one) for one in asked]):
        raise RuntimeError("the toy's circuit does not pass")
    prompts, ids = toy_canaries(draws)
    circuit = load_circuit(into, root=into.parent)
    return Subject(TOY, lab, circuit, into.parent, toy_texts(many, draws), tuple(prompts), ids, rate=3e-4)


def smollm2_subject(home: Path, seed: int, many: int, model: Path) -> Subject:
    """SmolLM2-135M with the induction circuit that is shipped."""
    lab, draws = open_model(model), np.random.default_rng([seed, 2])
    into = home / "artifacts" / "induction"
    shutil.copytree(SHIPPED / "induction", into)
    circuit = load_circuit(into, root=into.parent)
    prompts = (*own()[:4], *own()[16:20])
    spoken, ids = english_texts(lab, many, draws), english_canaries(lab, prompts)
    return Subject(SMOLLM2, lab, circuit, into.parent, spoken, prompts, ids, rate=5e-5)


def seen(
    subject: Subject,
    numerics: str,
    variants: Sequence[str],
    most: int,
    told: Callable[[str], None] = lambda _text: None,
) -> Seen:
    """Run ``most`` ways of every variant over every kind of text that it may meet: other languages only the sound model does."""
    model, identity = numerics_of(subject.lab, numerics)
    points = [place.where for place in subject.circuit.manifest.places]
    found = Seen(identity, _rounds(subject, model, RECORDED, points))
    material = Material(subject.circuit.manifest, subject.texts, subject.rate)
    for fault, change in (pair for one in variants for pair in islice(faults_of(one, material).items(), most)):
        told(f"{subject.name} {numerics}: {fault.variant} {fault.way}")
        with change(model) as made:
            for kind in KINDS if fault.variant == SOUND else (PLAIN, REPEATING):
                found.pools[fault, kind] = pool_of(made, subject.texts[kind], points)
            found.rounds[fault] = _rounds(subject, made, ANSWERED, points)
        gc.collect()
    return found


def _rounds(
    subject: Subject, model: Any, batchings: Sequence[Batching], points: Sequence[TapPoint]
) -> tuple[Round, ...]:
    """Of canaries, one in each of these batchings."""
    traffic = subject.texts[PLAIN]
    return tuple(round_of(model, subject.prompt_ids, traffic, points, one) for one in batchings)
