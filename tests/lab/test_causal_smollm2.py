"""A real model, and a direction that it is known to use: the one from which its head says "positive" rather than "negative"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from probes.activations.model import open_model
from probes.causal.behaviour import Behaviour
from probes.causal.case import Settings
from probes.causal.validation import validate
from probes.data.reading import Sources, load_texts
from probes.draft import Draft
from probes.manifest import Aggregation, AggregationKind
from probes.serving import Served
from probes.stages import Part
from sidecar.types import Evidence, FloatArray, TapPoint
from tests.lab.toy import toy_store, toy_training

ASKED = Behaviour(
    template="{text}", lead="The sentiment of this text is", positive=(" positive",), negative=(" negative",)
)
LAST = TapPoint(29)
LAST_TOKEN = Aggregation(kind=AggregationKind.LAST)


def answer_direction(model, tokenizer) -> FloatArray:
    """What the head reads of the last block's output, its norm's weights included, for the one answer less the other."""
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" positive", " negative"))
    rows = model.get_output_embeddings().weight.detach().numpy()
    return np.asarray((rows[yes] - rows[no]) * model.model.norm.weight.detach().numpy(), dtype=np.float32)


@pytest.mark.model
def test_sixty_reviews_show_that_smollm2_uses_its_own_answers_direction(smollm2: Path, tmp_path: Path) -> None:
    lab = open_model(smollm2)
    texts = list(load_texts(Sources(data=("sae:92_glue_sst2",), limit=60)).texts)
    store = toy_store(tmp_path / "acts", lab, texts, LAST)
    parts = tuple(Part.TRAIN if number % 2 else Part.TEST for number in range(len(texts)))
    direction = answer_direction(lab.model, lab.tokenizer)
    served = Served(direction[:, None], np.zeros(1, np.float32), LAST_TOKEN)
    draft = Draft(tmp_path / "draft")
    draft.write_trained(toy_training(store, served, LAST, parts), served)
    with Progress(disable=True) as bars:
        found = validate(draft, lab, Settings(behaviour=ASKED, texts=24, randoms=19, budget_s=100.0), bars)
    assert found.behaviour_auroc is not None
    assert found.behaviour_auroc > 0.7
    assert {one.name: one.passed for one in found.interventions if one.name != "erase"} == {
        "ablate": True,
        "patch": True,
        "steer_2sd": True,
    }
    assert found.evidence is Evidence.USED
