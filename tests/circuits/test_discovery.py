"""Discovery finds what is known to be there, says what it may have missed, and ends the same however often it was cut off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from probes.activations.model import LabModel
from probes.circuits.discovery import KEPT, discover
from probes.circuits.draft import DRAFT, DraftCircuit, read_draft
from probes.circuits.drafting import Settings
from probes.circuits.nodes import Node, by_point
from probes.circuits.pairs import Contrast
from probes.circuits.patching import Patching
from probes.circuits.replacing import Ablation, ablation, replacing
from probes.circuits.running import Decoder, groups
from probes.circuits.shortlist import missed_at_most, shortlist
from probes.circuits.toy import toy_pairs
from probes.circuits.universe import nodes_of
from probes.cli import main
from probes.errors import LabError
from sidecar.tap.identity import identify
from sidecar.types import Site
from tests.circuits.toys import FOLDER, INDUCTION, PREVIOUS_TOKEN, toy
from tests.tap.models import library

PAIRS = toy_pairs(16, seed=7)
QUIET = Progress(console=Console(stderr=True), disable=True)


@pytest.fixture(scope="module")
def lab() -> LabModel:
    return toy()


@pytest.fixture(scope="module")
def patching(lab: LabModel) -> Patching:
    return Patching(Decoder(lab.model), PAIRS, list(by_point(nodes_of(lab.model))))


def found(lab: LabModel, folder: Path, **changes: Any) -> DraftCircuit:
    settings: dict[str, Any] = {"name": "toy", "method": "exact", "traced": 0} | changes
    return discover(lab, PAIRS, Settings(**settings), folder, QUIET)


def many_heads() -> LabModel:
    """A random model of 96 nodes with the toy's words."""
    import torch

    config = library().LlamaConfig(
        vocab_size=64, hidden_size=60, intermediate_size=16, num_hidden_layers=6, num_attention_heads=15,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=None, pad_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = library().LlamaForCausalLM(config).eval()
    tokenizer = toy().tokenizer
    return LabModel(model, tokenizer, identify(model, tokenizer, name="many"), "")


def answered(lab: LabModel) -> tuple[Contrast, ...]:
    """Pairs whose right answer is the one that this model tends to after the clean prompt."""
    import torch

    pairs = []
    for pair in PAIRS:
        with torch.inference_mode():
            clean, corrupt = lab.model(torch.tensor([pair.clean, pair.corrupt])).logits[:, -1]
        ranked = (clean - corrupt).argsort().tolist()
        pairs.append(Contrast(pair.clean, pair.corrupt, (ranked[-1],), (ranked[0],), pair.place))
    return tuple(pairs)


def test_the_previous_token_head_and_the_induction_head_are_found(lab: LabModel, tmp_path: Path) -> None:
    draft = found(lab, tmp_path)
    heads = [node for node in draft.important_nodes if node.head is not None]
    assert heads[:2] == [PREVIOUS_TOKEN, INDUCTION]
    by_layer = {layer: next(node for node in heads if node.where.layer == layer) for layer in (0, 1)}
    assert by_layer == {0: PREVIOUS_TOKEN, 1: INDUCTION}
    effects = {one.node: one.effect for one in draft.nodes}
    others = [effects[f"blocks.0.attn_heads.{head}"] for head in range(3)]
    assert max(map(abs, others)) < 0.02 * draft.gap


def test_gradients_along_the_path_agree_with_exact_patching(lab: LabModel, tmp_path: Path) -> None:
    draft = found(lab, tmp_path, attribute=True)
    assert draft.pearson is not None
    assert draft.pearson > 0.95  # .99 as committed; a single gradient at the middle of the way gives .90
    ranked = sorted(draft.nodes, key=lambda one: -abs(one.attribution or 0.0))
    assert {ranked[0].node, ranked[1].node} == {PREVIOUS_TOKEN.name, INDUCTION.name}


def test_an_effect_is_what_patching_that_node_alone_takes_away(patching: Patching) -> None:
    decoder = patching.decoder
    for nodes in by_point(nodes_of(decoder.model)).values():
        effects = patching.exact(nodes)
        for group in groups(PAIRS):
            values = ablation(Ablation.RESAMPLE, decoder, [nodes[0].where], group.corrupt)
            for node, row in zip(nodes, effects, strict=True):
                alone = decoder.metrics(group.clean, replacing([node], values, decoder.heads)).numpy()
                np.testing.assert_allclose(row[list(group.pairs)], patching.clean[list(group.pairs)] - alone, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_attributions_of_a_tap_point_sum_to_patching_all_of_it(patching: Patching, layer: int) -> None:
    """The completeness of integrated gradients, here along the path of all the tap point's nodes at once."""
    decoder = patching.decoder
    nodes = [Node.parse(f"blocks.{layer}.attn_heads.{head}") for head in range(4)]
    for group in groups(PAIRS):
        values = ablation(Ablation.RESAMPLE, decoder, [nodes[0].where], group.corrupt)
        together = decoder.metrics(group.clean, replacing(nodes, values, decoder.heads)).numpy()
        wanted = patching.clean[list(group.pairs)] - together
        summed = patching.attributed(nodes, 64).sum(axis=0)[list(group.pairs)]
        np.testing.assert_allclose(summed.mean(), wanted.mean(), rtol=0.01)


def test_patching_the_residual_stream_everywhere_takes_the_whole_behaviour(lab: LabModel) -> None:
    stream = nodes_of(lab.model, [Site.RESID_POST])
    whole = Patching(Decoder(lab.model), PAIRS, list(by_point(stream)))
    for node in stream:
        np.testing.assert_allclose(whole.exact([node])[0], whole.clean - whole.corrupt, atol=1e-4)


@pytest.mark.parametrize("method", ["exact", "prefilter"])
def test_a_discovery_that_was_killed_ends_with_the_same_bytes(
    lab: LabModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found(lab, tmp_path / "whole", method=method, traced=1)
    wanted = (tmp_path / "whole" / DRAFT).read_bytes()
    runs = 0
    exact = Patching.exact

    def cut_off(self: Patching, nodes: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise KeyboardInterrupt
        return exact(self, nodes)

    monkeypatch.setattr(Patching, "exact", cut_off)
    with pytest.raises(KeyboardInterrupt):
        found(lab, tmp_path / "cut", method=method, traced=1)
    kept = tmp_path / "cut" / KEPT
    with kept.open("a") as file:
        file.write('{"key": "exact blocks.1')  # a line that the kill cut short
    assert not (tmp_path / "cut" / DRAFT).exists()
    found(lab, tmp_path / "cut", method=method, traced=1)
    assert runs == 5  # two before, two after, and the one that was cut off
    assert (tmp_path / "cut" / DRAFT).read_bytes() == wanted
    assert not kept.exists()


def test_what_was_kept_of_other_pairs_is_not_used(lab: LabModel, tmp_path: Path) -> None:
    kept = tmp_path / KEPT
    kept.write_text('{"settings": "of other pairs"}\n{"key": "exact blocks.0.mlp_out", "result": [[9.0]]}\n')
    assert found(lab, tmp_path) == found(lab, tmp_path / "anew")


def test_a_prefilter_draws_59_random_nodes_by_seed_and_bounds_what_it_missed(tmp_path: Path) -> None:
    many = many_heads()
    pairs = answered(many)

    def drawn(seed: int, folder: str) -> DraftCircuit:
        settings = Settings("many", method="prefilter", steps=1, traced=0, seed=seed)
        return discover(many, pairs, settings, tmp_path / folder, QUIET)

    one, other = drawn(0, "one"), drawn(1, "other")
    drawn(0, "again")
    assert (tmp_path / "one" / DRAFT).read_bytes() == (tmp_path / "again" / DRAFT).read_bytes()
    chosen = [[node.node for node in draft.nodes if node.chosen == "random"] for draft in (one, other)]
    assert [len(names) for names in chosen] == [59, 59]
    assert set(chosen[0]) != set(chosen[1])
    top = {node.node for node in one.nodes if node.chosen == "top"}
    assert len(top) == math.ceil(0.05 * 96)
    assert top == {node.node for node in sorted(one.nodes, key=lambda node: -abs(node.attribution or 0))[: len(top)]}
    assert one.missed is not None
    effects = [abs(node.effect or 0.0) for node in one.nodes if node.chosen == "random"]
    assert one.missed.important == sum(effect >= one.important * one.gap for effect in effects)
    assert one.missed.at_most == missed_at_most(one.missed.important, 59, 96 - len(top))
    assert sum(node.effect is None for node in one.nodes) == 96 - 59 - len(top)


def test_the_bound_is_the_share_at_which_so_few_would_be_seen_one_time_in_twenty() -> None:
    assert missed_at_most(0, 59, 1000) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert missed_at_most(0, 59, 1000) < 0.05 < missed_at_most(0, 58, 1000)
    for important in (0, 1, 5):
        share = missed_at_most(important, 80, 1000)
        seen = sum(math.comb(80, k) * share**k * (1 - share) ** (80 - k) for k in range(important + 1))
        assert seen == pytest.approx(0.05)
    assert missed_at_most(3, 59, 59) == pytest.approx(3 / 59)  # all were looked at
    assert missed_at_most(59, 59, 1000) == 1.0


def test_a_shortlist_takes_the_strongest_whichever_way_they_point() -> None:
    nodes = [Node.parse(f"blocks.{layer}.mlp_out") for layer in range(100)]
    sizes = {node: 0.01 * node.where.layer for node in nodes} | {nodes[3]: -9.0}
    picked = shortlist(sizes, 0)
    assert nodes[3] in picked.top
    assert set(picked.top) == {nodes[3], *nodes[96:]}
    assert not set(picked.top) & set(picked.random)


@pytest.mark.parametrize(("budget_s", "method"), [(1000.0, "exact"), (0.5, "prefilter")])
def test_the_budget_decides_whether_every_node_is_patched(
    lab: LabModel, tmp_path: Path, budget_s: float, method: str
) -> None:
    ticks = iter(range(1000))

    def clock() -> float:
        return 0.1 * next(ticks)

    settings = Settings("toy", budget_s=budget_s, traced=0)
    assert discover(lab, PAIRS, settings, tmp_path, QUIET, clock=clock).method == method


def test_pairs_that_the_model_does_not_tell_apart_are_refused(lab: LabModel, tmp_path: Path) -> None:
    turned = [Contrast(pair.clean, pair.corrupt, pair.wrong, pair.right) for pair in PAIRS]
    with pytest.raises(LabError, match="nothing to look for"):
        discover(lab, turned, Settings("toy"), tmp_path, QUIET)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"randoms": 58}, "fewer than 59"),
        ({"important": 0.0}, "important share"),
        ({"steps": 0}, "1 to 64 steps"),
        ({"budget_s": float("nan")}, "budget above 0"),
        ({"method": "guess"}, "no such method"),
    ],
)
def test_settings_that_could_not_work_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(LabError, match=why):
        Settings("toy", **changes).check()


def test_a_model_that_cannot_go_on_from_a_block_is_run_whole_with_the_same_effects(
    lab: LabModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = found(lab, tmp_path / "on", traced=1)
    monkeypatch.setattr(Decoder, "goes_on", lambda _self, _prompts: False)
    whole = found(lab, tmp_path / "whole", traced=1)
    assert (wanted.reuse, whole.reuse) == (True, False)
    assert whole.measured[0] == wanted.measured[0]
    np.testing.assert_allclose(whole.measured[1], wanted.measured[1], atol=1e-4)


def test_a_draft_is_bound_to_its_pairs_and_its_model(lab: LabModel, tmp_path: Path) -> None:
    found(lab, tmp_path)
    draft = read_draft(tmp_path)
    draft.must_be_of(PAIRS, lab.binding)
    with pytest.raises(LabError, match="other pairs"):
        draft.must_be_of(toy_pairs(16, seed=8), lab.binding)
    with pytest.raises(LabError, match="other weights"):
        draft.must_be_of(PAIRS, lab.binding.model_copy(update={"weights_digest": "0" * 64}))


def test_the_command_leaves_a_draft_and_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["discover", str(FOLDER), "induction:8", "--out", str(tmp_path / "out"), "--gradients"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert PREVIOUS_TOKEN.name in told
    assert "Pearson" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [DRAFT, "tracing.png", "tracing.svg"]
    assert main([*arguments[:2], str(tmp_path / "none.jsonl"), *arguments[3:]]) == 1
    told = capsys.readouterr().err
    assert "none.jsonl cannot be read" in told
    assert told.startswith("probes: ")  # no empty line above it
