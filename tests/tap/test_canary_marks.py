"""A canary is one because whoever sends it knows the token, and it is captured whatever the share of requests is."""

from __future__ import annotations

import pytest

from sidecar.tap.recorder import Recorder
from sidecar.tap.step import RequestInfo
from sidecar.tap.transformers.context import Caller
from sidecar.tap.transformers.launcher import CANARY_VARIABLE, caller_of
from sidecar.types import SamplingPolicy
from tests.tap.test_recorder import Keeper


def scope(**headers: str) -> dict[str, object]:
    named = {f"x-stethoscope-{name.replace('_', '-')}": value for name, value in headers.items()}
    return {"path": "/v1/completions", "headers": [(name.encode(), value.encode()) for name, value in named.items()]}


@pytest.mark.parametrize(
    ("token", "given", "is_one"),
    [("secret", "secret", True), ("secret", "guess", False), ("secret", "", False), ("", "", False), ("", "1", False)],
)
def test_only_who_knows_the_token_is_a_canary_and_may_name_its_route(monkeypatch, token, given, is_one) -> None:
    monkeypatch.setenv(CANARY_VARIABLE, token)
    caller = caller_of(scope(canary=given, route="canary-3", session_hash="s1"))
    assert caller == Caller("", "canary-3" if is_one else "completion", "s1", is_one)
    info = caller.info("r")
    assert (info.canary, info.route, info.session_id_hash) == (is_one, caller.route, "s1")


def test_a_canary_is_captured_at_any_share_but_none_and_its_caller_may_still_refuse() -> None:
    rare, never = (Recorder(Keeper(), SamplingPolicy(share)) for share in (1e-9, 0.0))
    canary, other = RequestInfo("r", canary=True), RequestInfo("r")
    assert rare.request(canary, 4).chosen
    assert not rare.request(other, 4).chosen
    assert not rare.request(canary, 4, chosen=False).chosen
    assert not never.request(canary, 4).chosen
