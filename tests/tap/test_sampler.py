from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.sampler import Sampler, randomness
from sidecar.types import SamplingPolicy


def _parent(generator: random.Random) -> str:
    return f"00-{generator.getrandbits(128):032x}-{generator.getrandbits(64) | 1:016x}-01"


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_the_chosen_share_is_the_policys(share: float) -> None:
    generator = random.Random(7)
    sampler = Sampler(SamplingPolicy(share))
    trials = 20_000
    by_trace = sum(sampler.chooses("r", _parent(generator)) for _ in range(trials))
    by_id = sum(sampler.chooses(f"request-{i}") for i in range(trials))
    deviation = 5 * (share * (1 - share) * trials) ** 0.5
    assert abs(by_trace - share * trials) < deviation
    assert abs(by_id - share * trials) < deviation


def test_the_trace_decides_and_not_the_name() -> None:
    generator = random.Random(3)
    sampler = Sampler(SamplingPolicy(0.5))
    for _ in range(100):
        parent = _parent(generator)
        other_span = f"{parent[:36]}{generator.getrandbits(64) | 1:016x}-00"
        assert sampler.chooses("a", parent) == sampler.chooses("b", other_span)


@given(st.integers(0, 2**56 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_request_chosen_at_a_lower_share_is_chosen_at_every_higher_one(r: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    parent = f"00-{1:018x}{r:014x}-{1:016x}-01"
    if Sampler(SamplingPolicy(low)).chooses("r", parent):
        assert Sampler(SamplingPolicy(high)).chooses("r", parent)


def test_the_rule_is_that_of_w3c_and_opentelemetry() -> None:
    """R is the last 56 bits of the trace id, and R >= (1 - p) * 2^56 is chosen: the smallest R at p = 1/2 is 2^55."""
    half = Sampler(SamplingPolicy(0.5))
    assert half.chooses("r", f"00-{1:018x}{2**55:014x}-{1:016x}-00")
    assert not half.chooses("r", f"00-{1:018x}{2**55 - 1:014x}-{1:016x}-00")


@pytest.mark.parametrize(
    "header", ["", "junk", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01"]
)
def test_a_malformed_traceparent_leaves_the_decision_to_the_id(header: str) -> None:
    assert randomness("request-1", header) == randomness("request-1")


def test_an_id_that_is_no_text_still_gets_a_decision() -> None:
    assert Sampler(SamplingPolicy(1.0)).chooses("\udcff")


@given(
    st.integers(0, 300),
    st.integers(1, 80),
    st.integers(0, 200),
    st.integers(1, 9),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_tokens_are_selected_position_by_position(
    first: int, count: int, prompt: int, stride: int, head: int, tail: int
) -> None:
    policy = SamplingPolicy(1.0, stride, head, tail)
    wanted = [
        offset
        for offset, position in enumerate(range(first, first + count))
        if position % stride == 0 or position < head or prompt - tail <= position < prompt
    ]
    assert list(Sampler(policy).select(first, count, prompt)) == wanted
