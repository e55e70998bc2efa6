"""The shipped artifacts load, say what they are worth, and read today's model as they read it when they were made."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from probes.activations.feeding import chat_ids
from probes.activations.in_memory import states_of
from probes.activations.model import LabModel, open_model
from probes.artifact import Artifact, fit
from probes.auroc import auroc
from probes.build_control import ControlRecipe, block_rows, build_control
from probes.control import SKIP_POSITIONS, Direction, Range
from probes.control_texts import fed_halves, halved
from probes.data.alike import alike_groups
from probes.data.parts import assign_parts
from probes.manifest import Kind, TokenSpan
from probes.quality.gates import SHUFFLED_TOLERANCE
from probes.recipe import LAYERS, ZOO, read_recipes
from probes.registry import load_folder
from probes.serving import Served
from probes.stages import Part
from probes.zoo_build import artifact_names
from probes.zoo_texts import CONTROL_RECIPES, gather, gather_for_controls
from sidecar.types import Evidence
from tests.tap.models import save_tiny

ARTIFACTS = {artifact.manifest.name: artifact for artifact in load_folder(ZOO, limit=100)}
READERS = [artifact for artifact in ARTIFACTS.values() if artifact.manifest.kind is Kind.LINEAR_PROBE]
CONTROL_READERS = [artifact for artifact in ARTIFACTS.values() if artifact.manifest.kind is Kind.POSITIVE_CONTROL]
SUBSET = 50
needs_sets = pytest.mark.skipif(
    importlib.util.find_spec("sae_probes") is None,
    reason="the labelled sets are missing: pip install --no-deps sae-probes==0.4.2",
)
by_name = pytest.mark.parametrize("artifact", READERS, ids=lambda artifact: artifact.manifest.name)


def test_everything_is_shipped_but_what_the_page_says_is_not_built_yet() -> None:
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    waiting = re.findall(r"`(\w+)`", "".join(re.findall(r"^Recipes not built yet: .*$", page, flags=re.MULTILINE)))
    assert set(ARTIFACTS) == set(artifact_names()) - set(waiting)


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 5_000_000


def test_every_tap_point_that_is_read_has_one_positive_control() -> None:
    read = {artifact.manifest.tap_point for artifact in READERS}
    controlled = [artifact.manifest.tap_point for artifact in CONTROL_READERS]
    assert len(set(controlled)) == len(controlled) == 2
    assert read <= set(controlled)


def test_all_were_made_on_one_model() -> None:
    assert len({artifact.manifest.model for artifact in ARTIFACTS.values()}) == 1
    assert {artifact.manifest.feature_contract.skip_positions for artifact in ARTIFACTS.values()} == {SKIP_POSITIONS}


def test_sentiment_beats_the_best_text_baseline_and_the_model_uses_it() -> None:
    manifest = ARTIFACTS["sentiment"].manifest
    assert manifest.quality is not None
    assert manifest.quality.gain_interval[0] > 0
    assert manifest.evidence is Evidence.USED
    assert not manifest.failed


@by_name
def test_evidence_and_verdict_follow_from_the_numbers(artifact: Artifact) -> None:
    manifest, quality = artifact.manifest, artifact.manifest.quality
    assert quality is not None
    assert quality.baselines[quality.best_baseline] == max(quality.baselines.values())
    assert quality.gain == pytest.approx(quality.auroc - quality.baselines[quality.best_baseline])
    assert manifest.gates is not None
    passed = {gate.name for gate in manifest.gates if gate.passed}
    assert ("shuffled_labels" in passed) == (abs(quality.shuffled_label_auroc - 0.5) <= SHUFFLED_TOLERANCE)
    if quality.gain_interval[0] <= 0:
        assert "beats_text" not in passed
    readable = {"beats_text", "shuffled_labels"} <= passed
    used = {"behaves", "needed", "sufficient"} <= passed
    wanted = Evidence.USED if used else Evidence.DECODABLE if readable else Evidence.UNVERIFIED
    assert manifest.evidence is wanted
    assert quality.verdict.startswith("FAILED: ") == bool(manifest.failed)


@by_name
def test_thresholds_are_certified_or_their_gate_says_that_they_are_not(artifact: Artifact) -> None:
    threshold = artifact.manifest.threshold
    assert threshold is not None
    for one in (threshold, *threshold.buckets):
        assert one.fpr_interval[0] <= one.measured_fpr <= one.fpr_interval[1]
        assert one.certified or "threshold" in artifact.manifest.failed
        assert not one.certified or (one.benign_rows >= 59 and one.measured_fpr < threshold.target_fpr)


@pytest.fixture(scope="module")
def lab(smollm2: Path) -> LabModel:
    return open_model(smollm2)


def direction_of(artifact: Artifact) -> Direction:
    return Direction(artifact.directions[:, 0], float(artifact.offsets[0]))


@pytest.mark.model
def test_every_artifact_fits_the_model_it_is_shipped_for(lab: LabModel) -> None:
    for artifact in ARTIFACTS.values():
        assert fit(artifact.manifest, lab.identity).evidence is artifact.manifest.evidence
        assert artifact.manifest.feature_contract.chat_template_digest == lab.template_digest


@pytest.mark.model
@needs_sets
@by_name
def test_recorded_quality_comes_out_again_on_fresh_states(lab: LabModel, artifact: Artifact, tmp_path: Path) -> None:
    manifest = artifact.manifest
    assert manifest.quality is not None
    assert manifest.aggregation is not None
    recipe = read_recipes()[manifest.name]
    loaded = gather(recipe, tmp_path / "texts").texts
    parts = assign_parts(loaded.texts, recipe.seed, outside=frozenset(loaded.outside))
    tests = [text for text, part in zip(loaded.texts, parts, strict=True) if part is Part.TEST]
    tests = sorted(tests, key=lambda text: text.key)[:SUBSET]
    where, ids = manifest.where, [chat_ids(lab, text.text) for text in tests]
    states = states_of(lab, ids, [where], manifest.feature_contract.skip_positions, Progress(disable=True))
    found = Served(artifact.directions, artifact.offsets, manifest.aggregation).scores(states[where])
    labels = np.array([text.label for text in tests])
    # The interval is that of all test rows; a subset's is wider by the square root of what was left out.
    low, high = manifest.quality.auroc_interval
    tolerance = (high - low) / 2 * (manifest.quality.test_rows / len(tests)) ** 0.5 + 0.01
    assert auroc(found, labels) == pytest.approx(manifest.quality.auroc, abs=tolerance)


@pytest.mark.model
@pytest.mark.parametrize("artifact", CONTROL_READERS, ids=lambda artifact: artifact.manifest.name)
def test_control_reads_its_block_in_range_and_blocks_two_away_out_of_it(lab: LabModel, artifact: Artifact) -> None:
    manifest, layer = artifact.manifest, artifact.manifest.where.layer
    assert manifest.control_range is not None
    # None of these was in its making.
    prompts = [
        "How do tides work?",
        "import numpy as np; np.eye(3)",
        "Ich suche ein Geschenk für meine Schwester.",
        "42",
    ]
    ids = [chat_ids(lab, prompt) for prompt in prompts]
    rows = block_rows(lab, ids, [layer - 2, layer, layer + 2], Progress(disable=True))
    bounds = Range(manifest.control_range.low, manifest.control_range.high)
    outside = {at: bounds.outside(direction_of(artifact).read(of_layer)) for at, of_layer in rows.items()}
    assert outside[layer] <= 0.05
    assert outside[layer - 2] > 0.5
    assert outside[layer + 2] > 0.5


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory: pytest.TempPathFactory) -> LabModel:
    return open_model(save_tiny(tmp_path_factory.mktemp("tiny")))


@needs_sets
def test_building_a_control_measures_it_on_rows_it_was_not_made_from(tiny_lab: LabModel, tmp_path: Path) -> None:
    bars = Progress(disable=True)
    halves = fed_halves(tiny_lab, gather_for_controls(tmp_path / "texts"), "theirs", bars)
    manifest = build_control(ControlRecipe(2, reach=1), tiny_lab, halves, tmp_path / "control", bars)
    assert manifest.control_range is not None
    assert manifest.feature_contract.token_span is TokenSpan.ALL
    assert 0 <= manifest.control_range.outside < 0.1
    assert "at block 1" in manifest.description
    assert "at block 3" in manifest.description


@needs_sets
def test_the_controls_texts_come_from_every_set_in_both_halves_and_no_relative_is_in_both(tmp_path: Path) -> None:
    texts = gather_for_controls(tmp_path).texts
    sides = [[texts[number] for number in side] for side in halved(texts)]
    for side in sides:
        counts = Counter(text.dataset for text in side)
        assert len(counts) == len(CONTROL_RECIPES)
        assert min(counts.values()) >= 40
    heads = alike_groups([text.text for side in sides for text in side], [()] * len(texts))
    assert not set(heads[: len(sides[0])]) & set(heads[len(sides[0]) :])


def test_controls_are_told_from_the_blocks_on_both_sides_that_there_are() -> None:
    for layer in LAYERS:
        assert [other - layer for other in ControlRecipe(layer).neighbours(30)] == [-2, -1, 1, 2]
    assert ControlRecipe(0).neighbours(30) == (1, 2)
    assert ControlRecipe(3).neighbours(4) == (1, 2)
