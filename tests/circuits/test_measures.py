"""Faithfulness and its kin on a model that is a sum: every number is known before it is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probes.circuits.nodes import Node
from probes.circuits.validation.measures import SIZES, Behaviour, curve, jaccard, minimality, necessity, random_sets
from probes.circuits.validation.readout import MOST, validity
from probes.errors import LabError

NODES = tuple(Node.parse(f"blocks.0.attn_heads.{head}") for head in range(10))
A, B, C, *REST = NODES
PAIRS = np.array([0.0, 1.0, -1.0, 2.0])  # what pairs have of their own, whatever is ablated


def a_sum(worth: dict[Node, float]) -> Behaviour:
    """Each node adds what it is worth, unless it is ablated."""
    return Behaviour(lambda gone: 3.0 + PAIRS + sum(v for n, v in worth.items() if n not in gone), NODES)


def backed_up() -> Behaviour:
    """A does all of it; B does it as soon as A is gone."""
    return Behaviour(lambda gone: PAIRS + (8.0 if A not in gone or B not in gone else 0.0), NODES)


@pytest.fixture
def plain() -> Behaviour:
    return a_sum({A: 5.0, B: 3.0, C: 2.0})


def test_in_a_sum_a_set_is_worth_its_share_kept_or_ablated(plain):
    assert plain.span == 10
    assert plain.faithfulness([A, B]) == pytest.approx(0.8)
    assert plain.completeness([A, B]) == pytest.approx(0.2)
    assert plain.faithfulness(NODES) == 1
    assert plain.completeness(NODES) == 0
    assert plain.faithfulness([]) == 0


def test_every_ablation_is_run_once():
    asked = []

    def metric(gone: frozenset[Node]) -> np.ndarray:
        asked.append(gone)
        return PAIRS + 5.0 - len(gone)

    behaviour = Behaviour(metric, NODES)
    for _ in range(3):
        behaviour.completeness([A, B])
        behaviour.completeness([B, A])
    assert len(asked) == len(set(asked)) == 3


def test_where_nothing_changes_the_metric_there_is_nothing_to_explain():
    with pytest.raises(LabError, match="nothing to explain"):
        a_sum({})


def test_an_ablation_that_helps_gives_a_faithfulness_above_one():
    assert a_sum({A: 5.0, B: -1.0}).faithfulness([A]) == pytest.approx(1.25)


def test_a_backup_shows_as_a_circuit_that_is_faithful_and_not_complete():
    behaviour = backed_up()
    assert (behaviour.faithfulness([A]), behaviour.completeness([A])) == (1, 1)
    assert (behaviour.faithfulness([A, B]), behaviour.completeness([A, B])) == (1, 0)


def test_minimality_of_a_sum_is_each_nodes_worth_both_ways_and_that_of_backups_shows_only_when_spared(plain):
    for found, share in zip(minimality(plain, [A, B, C]), (0.5, 0.3, 0.2), strict=True):
        assert (found.alone, found.back) == (pytest.approx(share), pytest.approx(share))
        assert found.alone_interval == pytest.approx((share, share))
    for found in minimality(backed_up(), [A, B]):
        assert (found.alone, found.back) == (0, 1)
    idle = minimality(plain, [A, REST[0]])[1]
    assert (idle.alone, idle.back, idle.alone_interval, idle.back_interval) == (0, 0, (0, 0), (0, 0))


def test_the_curve_of_a_sum_is_known_at_every_size_and_so_are_its_areas():
    even = a_sum(dict.fromkeys(NODES, 1.0))
    found = curve(even, NODES)
    assert [one.size for one in found.points] == list(SIZES)
    assert [one.nodes for one in found.points] == [1, 1, 1, 1, 1, 1, 1, 2, 5, 10]
    assert [one.faithfulness for one in found.points] == pytest.approx([0.1] * 7 + [0.2, 0.5, 1.0])
    area = (0.099 * 0.1 + 0.1 * 0.15 + 0.3 * 0.35 + 0.5 * 0.75) / 0.999
    assert found.cpr == pytest.approx(area)
    assert found.cmd == pytest.approx(1 - area)


def test_a_circuit_as_good_as_the_model_at_every_size_has_cpr_1_and_cmd_0_and_more_than_that_counts_against_it():
    alone = curve(a_sum({A: 4.0}), NODES)
    assert (alone.cpr, alone.cmd) == (pytest.approx(1), pytest.approx(0))
    better = curve(
        a_sum({A: 5.0, NODES[-1]: -1.0}), NODES
    )  # .25 above the model until its last node comes in, at size 1
    assert better.cpr == pytest.approx(1 + (0.499 * 0.25 + 0.5 * 0.125) / 0.999)
    assert better.cmd == pytest.approx(better.cpr - 1)


def test_what_no_random_set_comes_near_is_as_rare_as_the_sets_can_tell(plain):
    found = necessity(plain, [A, B, C], [A, B, C], draws=24)
    assert found.random == (1.0,) * 24
    assert (found.left, found.p_value) == (pytest.approx(0), 1 / 25)
    none_better = necessity(plain, [REST[0]], [REST[0]], draws=24)
    assert none_better.p_value == 1


def test_a_node_on_which_everything_rests_makes_no_bystander_needed():
    mlp, bystander = Node.parse("blocks.0.mlp_out"), REST[0]
    behaviour = Behaviour(lambda gone: np.full(8, 0.0 if mlp in gone else 4.0 - (A in gone)), [*NODES, mlp])
    assert behaviour.completeness([mlp, bystander]) == 0
    found = necessity(behaviour, [bystander], [mlp, bystander], draws=24)
    assert (found.left, found.p_value) == (1, 1)


def test_random_sets_hold_as_many_of_each_site_from_outside_the_circuit():
    mlps = [Node.parse(f"blocks.{layer}.mlp_out") for layer in range(4)]
    universe, circuit = [*NODES, *mlps], [A, B, mlps[0]]
    others = set(universe) - set(circuit)
    drawn = random_sets(others, circuit, 20, seed=1)
    assert drawn == random_sets(others, circuit, 20, seed=1)
    assert len(set(drawn)) > 10
    for one in drawn:
        assert not one & set(circuit)
        assert sorted(node.where.site for node in one) == ["attn_heads", "attn_heads", "mlp_out"]


def test_intervals_cover_what_pairs_differ_by():
    worths = np.array([1.0, 3.0, 1.0, 3.0] * 8)
    behaviour = Behaviour(lambda gone: 10.0 - worths * (A in gone) - (10.0 - worths) * (B in gone), NODES)
    low, high = behaviour.interval(behaviour.whole, behaviour.without([A]))
    assert low < 0.2 < high
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1 / math.sqrt(32), rel=0.15)


def test_a_choice_that_one_pair_decides_is_not_stable():
    apart = np.array([[5.0] * 20, [4.0] * 20, [1.0] * 20])
    assert jaccard(apart, [0, 1]) == 1
    by_chance = np.array([[0.0] * 19 + [40.0], [1.0] * 20, [0.5] * 20])
    assert 0.5 < jaccard(by_chance, [0]) < 0.75  # drawn with chance 1 - (19/20)^20 = .64


def reads(weights: dict[Node, float]):
    return lambda gone: 6.0 + np.zeros(5) - sum(weights.get(node, 0.0) for node in gone)


def test_validity_compares_the_circuit_with_the_worst_other_node():
    found = validity(reads({A: 4.0, B: 2.0, C: -1.0}), [A, B], [C, *REST], np.zeros(8))
    assert (found.circuit, found.worst, found.worst_node) == (6, 1, C.name)
    assert (found.ratio, found.others, found.auroc, found.gap) == (6, 8, 1, 6)


def test_a_score_thrown_below_all_traffic_counts_as_far_as_traffic_lies():
    assert validity(reads({A: 500.0, C: 2.0}), [A], [C], np.full(8, 1.0)).circuit == 5


def test_a_score_that_rises_when_the_circuit_goes_does_not_read_it():
    assert validity(reads({A: -4.0, C: 0.1}), [A], [C], np.zeros(8)).ratio == 0


def test_a_score_that_nothing_else_moves_is_as_valid_as_can_be_and_one_that_nothing_moves_is_not():
    assert validity(reads({A: 4.0}), [A], [C], np.zeros(8)).ratio == MOST
    assert validity(reads({}), [A], [C], np.zeros(8)).ratio == 0
