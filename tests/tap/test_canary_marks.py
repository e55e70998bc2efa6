"""A canary is one because whoever sends it knows the token, and it is captured whatever the share of requests is."""

from __future__ import annotations

import pytest

from sidecar.tap.asked import CANARY_VARIABLE, request_info
from sidecar.tap.recorder import Recorder
from sidecar.tap.step import RequestInfo
from sidecar.tap.transformers.context import Caller
from sidecar.tap.transformers.launcher import caller_of
from sidecar.types import SamplingPolicy
from tests.tap.test_recorder import Keeper


def scope(**headers: str) -> dict[str, object]:
    named = {f"x-stethoscope-{name.replace('_', '-')}": value for name, value in headers.items()}
    return {"path": "/v1/completions", "headers": [(name.encode(), value.encode()) for name, value in named.items()]}


GIVEN = [
    ("secret", "secret", True),
    ("secret\n", "secret", True),  # as a file gives it to an environment
    ("secret", "guess", False),
    ("secret", "secret1", False),
    ("secret", "true", False),
    ("secret", "", False),
    ("", "", False),
    ("", "1", False),
    (" ", "", False),
]


@pytest.mark.parametrize(("token", "given", "is_one"), GIVEN)
def test_only_who_knows_the_token_is_a_canary_and_may_name_its_route(monkeypatch, token, given, is_one) -> None:
    monkeypatch.setenv(CANARY_VARIABLE, token)
    caller = caller_of(scope(canary=given, route="canary-3", session_hash="s1"))
    assert caller == Caller("", "canary-3" if is_one else "completion", "s1", is_one)
    info = caller.info("r")
    assert (info.canary, info.route, info.session_id_hash) == (is_one, caller.route, "s1")


@pytest.mark.parametrize(
    ("token", "given", "is_one"),
    [*GIVEN, ("secret", 1, False), ("1", 1, False), ("secret", ["secret"], False), ("secret", "\ud800", False)],
)
def test_in_extra_parameters_it_is_the_token_too_that_makes_a_canary_and_it_goes_no_further(
    monkeypatch, token, given, is_one
) -> None:
    monkeypatch.setenv(CANARY_VARIABLE, token)
    info = request_info("r", {"stethoscope_canary": given, "stethoscope_route": "canary-3", "traceparent": "00-parent"})
    assert info == RequestInfo("r", traceparent="00-parent", route="canary-3", canary=is_one)


def test_without_a_token_in_the_environment_nobody_is_a_canary(monkeypatch) -> None:
    monkeypatch.delenv(CANARY_VARIABLE, raising=False)
    assert not request_info("r", {"stethoscope_canary": "true"}).canary
    assert not request_info("r", {}).canary


def test_a_canary_is_captured_at_any_share_but_none_and_its_caller_may_still_refuse() -> None:
    rare, never = (Recorder(Keeper(), SamplingPolicy(share)) for share in (1e-9, 0.0))
    canary, other = RequestInfo("r", canary=True), RequestInfo("r")
    assert rare.request(canary, 4).chosen
    assert not rare.request(other, 4).chosen
    assert not rare.request(canary, 4, chosen=False).chosen
    assert not never.request(canary, 4).chosen
