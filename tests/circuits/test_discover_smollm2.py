"""On a real model: a few nodes of the shipped drafts have the effects that stand there, and behave as they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probes.activations.model import LabModel, open_model
from probes.circuits.behaviours import BEHAVIOURS, made_pairs
from probes.circuits.draft import read_draft
from probes.circuits.patching import Patching
from probes.circuits.running import Decoder, groups
from probes.circuits.universe import nodes_of

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]
SHIPPED = Path(__file__).parents[2] / "probes" / "circuits" / "shipped"
FEW = 2


@pytest.fixture(scope="module")
def lab(smollm2: Path) -> LabModel:
    return open_model(smollm2)


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_a_shipped_draft_is_of_this_model_and_these_pairs_and_its_effects_are_found_again(
    name: str, lab: LabModel
) -> None:
    draft = read_draft(SHIPPED / name)
    pairs = made_pairs(name, lab, draft.pairs)
    draft.must_be_of(pairs, lab.binding)
    ordered, effects = draft.measured
    assert set(ordered) == set(nodes_of(lab.model))
    sizes = dict(zip(ordered, np.abs(effects.mean(axis=1)), strict=True))
    strongest = max(
        (node for node in ordered if node.head is not None and node.where.layer > 12), key=sizes.__getitem__
    )
    patching = Patching(Decoder(lab.model), pairs[:FEW], [strongest.where])
    found = patching.exact([strongest])[0]
    np.testing.assert_allclose(found, effects[ordered.index(strongest)][:FEW], atol=2e-3)


def test_every_behaviour_is_stronger_on_clean_prompts(lab: LabModel) -> None:
    decoder = Decoder(lab.model)
    for name in BEHAVIOURS:
        for group in groups(made_pairs(name, lab, 4, seed=9)):
            assert float((decoder.metrics(group.clean) - decoder.metrics(group.corrupt)).mean()) > 0
