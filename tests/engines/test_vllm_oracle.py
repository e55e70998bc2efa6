"""The tap beside vLLM's own connector for hidden states, in one server: two ways that share nothing, and the same rows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from sidecar.types import TapPoint, UnseenReason
from tests.engines.environment import Environment
from tests.engines.models import LAYERS, WIDTH, tiny_model
from tests.engines.oracle_connector import Oracle
from tests.engines.tapped import Tapped, tap_id, tapped
from tests.engines.vllm_server import Completion

POINTS = (TapPoint(0), TapPoint(LAYERS - 1))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("o"), tuple(point.layer for point in POINTS))


@pytest.fixture(scope="module")
def engine(vllm: Environment, oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    flags = (*oracle.flags, "--max-num-batched-tokens=128", "--enable-chunked-prefill")
    folder = tmp_path_factory.mktemp("e")
    with tapped(vllm, tiny_model("qwen3"), folder, *flags, points=POINTS, eager=True, surroundings=oracle.env) as made:
        yield made


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 20_000) for _ in range(length)]


def _seen(engine: Tapped, oracle: Oracle, name: str, done: Completion) -> list[int]:
    """The positions that the tap has: at each of them its rows are the oracle's, which has every position."""
    theirs = oracle.states(name)
    assert theirs.tokens == done.fed
    assert theirs.rows.shape == (len(done.fed), len(POINTS), WIDTH)
    for column, point in enumerate(POINTS):
        ours = engine.rows(tap_id(done), point)
        for position, row in ours.items():
            np.testing.assert_array_equal(row, theirs.rows[position, column])
    return sorted(ours)


def test_the_tap_leaves_the_models_own_outputs_to_whoever_asked_first(engine: Tapped) -> None:
    (told,) = [line for line in engine.server.log if "tapped engine_id=" in line]
    assert all(f"{point.name}:operator" in told for point in POINTS)


@pytest.mark.shows("vLLM V1", "continuous batching")
def test_the_rows_of_concurrent_requests_are_the_oracles_to_the_bit(engine: Tapped, oracle: Oracle) -> None:
    names = [f"both{n}" for n in range(5)]
    done = engine.complete([prompt(n, 3 + 61 * n) for n in range(5)], names, 12, **oracle.asked)
    for name, one in zip(names, done, strict=True):
        assert _seen(engine, oracle, name, one) == list(range(len(one.fed)))


@pytest.mark.shows("vLLM V1", "prefix cache")
def test_what_the_tap_says_that_the_prefix_cache_had_is_in_the_oracle_and_is_the_first_requests(
    engine: Tapped, oracle: Oracle
) -> None:
    shared = prompt(200, 300)
    (first,) = engine.complete([[*shared, 5, 6]], ["warms"], 4, **oracle.asked)
    hits = engine.server.metric("vllm:prefix_cache_hits_total")
    (second,) = engine.complete([[*shared, 7, 8, 9]], ["hits"], 4, **oracle.asked)
    seen = _seen(engine, oracle, "hits", second)
    cached = seen[0]
    assert seen == list(range(cached, len(second.fed)))
    assert engine.segments(tap_id(second))[0].unseen == {UnseenReason.PREFIX_CACHE: cached}
    assert cached == engine.server.metric("vllm:prefix_cache_hits_total") - hits > 0
    theirs = oracle.states("hits").rows
    for column, point in enumerate(POINTS):
        computed = engine.rows(tap_id(first), point)
        for position in range(cached):
            np.testing.assert_array_equal(theirs[position, column], computed[position])
