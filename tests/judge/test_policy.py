"""What signals lead to, by the configuration."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from sidecar.config import Verdicts, load_config
from sidecar.errors import ConfigError
from sidecar.judge.policy import Policy, verdict_signals
from sidecar.reading.plan import Plan, Signal, build_plan
from sidecar.types import Action, Evidence
from tests.builders import MODEL, make_signal

WEAKEST_FIRST = [Action.ALLOW, Action.FLAG, Action.ESCALATE, Action.BLOCK]


def plan_of(*signals: Signal) -> Plan:
    return replace(build_plan(1, (), MODEL), signals=signals)


def policy_of(default: Action = Action.FLAG, at_deadline: Action = Action.ALLOW, **signals: Action) -> Policy:
    """A policy for one signal for each that is named, and one that is not: "other"."""
    plan = plan_of(*(make_signal(name) for name in (*signals, "other")))
    return Policy(Verdicts(default=default, signals=signals, at_deadline=at_deadline), plan)


def act(policy: Policy, *flagged: int) -> Action:
    return policy.action(np.array(flagged, dtype=np.intp))


def test_a_signal_does_what_is_configured_and_others_the_default():
    policy = policy_of(default=Action.ESCALATE, quiet=Action.ALLOW, toxic=Action.BLOCK)
    assert [act(policy, index) for index in range(3)] == [Action.ALLOW, Action.BLOCK, Action.ESCALATE]


def test_where_nothing_is_flagged_the_request_is_allowed():
    assert act(policy_of(default=Action.BLOCK)) is Action.ALLOW


@pytest.mark.parametrize(("one", "other"), list(product(WEAKEST_FIRST, WEAKEST_FIRST)))
def test_of_several_signals_the_strongest_action_holds_and_a_block_is_never_softened(one, other):
    policy = policy_of(first=one, second=other)
    strongest = max(one, other, key=WEAKEST_FIRST.index)
    assert act(policy, 0, 1) is act(policy, 1, 0) is strongest


@pytest.mark.parametrize("why", [{"evidence": Evidence.STALE}, {"evidence": Evidence.USED, "failed": True}])
def test_a_signal_that_is_stale_or_failed_its_gates_never_acts_and_is_not_said_to_have_been_read(why):
    plan = plan_of(make_signal("old", **why), make_signal("new"))
    policy = Policy(Verdicts(default=Action.BLOCK, signals={"old": Action.BLOCK}), plan)
    assert act(policy, 0) is Action.ALLOW
    everything, nothing = np.ones(2, dtype=bool), np.zeros(2, dtype=bool)
    assert policy.told(everything, nothing) == {"read": ("new",), "skipped": ("old",), "late": ()}


def test_a_name_that_is_no_signals_is_told():
    verdicts = Verdicts(signals={"toxik": Action.BLOCK, "absent": Action.FLAG, "toxic": Action.BLOCK})
    policy = Policy(verdicts, plan_of(make_signal("toxic")))
    assert policy.unknown == ("absent", "toxik")
    assert act(policy, 0) is Action.BLOCK


def test_a_plan_without_signals_allows_and_tells_every_name():
    policy = Policy(Verdicts(signals={"toxic": Action.BLOCK}), plan_of())
    none = np.zeros(0, dtype=bool)
    assert (act(policy), policy.unknown) == (Action.ALLOW, ("toxic",))
    assert policy.told(none, none) == {"read": (), "skipped": (), "late": ()}


def test_those_that_block_or_escalate_decide():
    names = ["a", "b", "c", "d", "e"]
    by_name = dict(zip(names, WEAKEST_FIRST, strict=False))
    assert verdict_signals(Verdicts(signals=by_name), names) == {"c", "d"}
    assert verdict_signals(Verdicts(default=Action.BLOCK, signals=by_name), names) == {"c", "d", "e"}
    assert verdict_signals(Verdicts(signals=by_name), ["d", "e"]) == {"d"}


@pytest.mark.parametrize("action", [Action.ALLOW, Action.BLOCK])
def test_the_answer_at_the_deadline_is_open_or_closed_as_configured(action):
    assert policy_of(at_deadline=action).at_deadline is action


@pytest.mark.parametrize("action", ["flag", "escalate", "deny", ""])
def test_an_answer_at_the_deadline_that_is_neither_open_nor_closed_is_refused(action):
    with pytest.raises(ConfigError) as wrong:
        load_config(env={}, flags={"verdicts.at_deadline": action})
    assert [problem.partition(":")[0] for problem in wrong.value.problems] == ["verdicts.at_deadline"]


def test_every_signal_is_told_once_and_a_late_one_is_late_whatever_it_had_read_before():
    policy = policy_of(a=Action.FLAG, b=Action.FLAG, c=Action.FLAG)  # and "other"
    ready, late = np.array([True, True, False, False]), np.array([False, True, True, False])
    assert policy.told(ready, late) == {"read": ("a",), "skipped": ("other",), "late": ("b", "c")}


def test_what_is_told_follows_the_request_and_not_the_one_before():
    policy, draw = policy_of(a=Action.FLAG, b=Action.BLOCK), np.random.default_rng(0)
    for _ in range(100):
        ready, late = draw.random(3) < 0.5, draw.random(3) < 0.2
        told = policy.told(ready, late)
        names = np.array(["a", "b", "other"])
        assert set(told["read"]) == set(names[ready & ~late])
        assert set(told["late"]) == set(names[late])
        assert sorted(told["read"] + told["skipped"] + told["late"]) == ["a", "b", "other"]
