"""A vLLM that guesses tokens by n-grams and preempts for want of memory: rejected guesses are no rows, and nothing comes twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from sidecar.types import TapPoint, UnseenReason
from tests.engines.environment import Environment
from tests.engines.models import tiny_model
from tests.engines.reference import Reference
from tests.engines.tapped import Tapped, tap_id, tapped, worst_error

POINTS = (TapPoint(0), TapPoint(3))
TOLERANCE = 2e-4
GUESSES = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
CACHE_BYTES = 3 << 20  # for some 1,500 tokens: 12 requests of 200 do not fit


@pytest.fixture(scope="module")
def engine(vllm: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    flags = (
        f"--speculative-config={json.dumps(GUESSES)}",
        f"--kv-cache-memory-bytes={CACHE_BYTES}",
        "--no-enable-prefix-caching",
        "--max-model-len=512",
    )
    with tapped(vllm, tiny_model("qwen3"), tmp_path_factory.mktemp("s"), *flags, points=POINTS, eager=True) as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(tiny_model("qwen3"))


def repeating(seed: int) -> list[int]:
    """A prompt that n-grams guess from, and often wrongly."""
    rng = random.Random(seed)
    phrase = [rng.randrange(300, 20_000) for _ in range(6)]
    return [*phrase, *phrase, *(rng.choice(phrase) for _ in range(12))]


@pytest.mark.shows("vLLM V1", "n-gram speculation")
def test_rejected_guesses_are_no_rows_and_accepted_ones_are(engine: Tapped, reference: Reference) -> None:
    done = engine.complete([repeating(n) for n in range(4)], [f"guess{n}" for n in range(4)], 120)
    assert engine.server.metric("vllm:spec_decode_num_draft_tokens_total") > 0
    accepted = engine.server.metric("vllm:spec_decode_num_accepted_tokens_total")
    assert 0 < accepted < engine.server.metric("vllm:spec_decode_num_draft_tokens_total")
    for one in done:
        assert max(worst_error(engine, reference, one, POINTS).values()) < TOLERANCE
        assert all(len(engine.rows(tap_id(one), point)) == len(one.fed) for point in POINTS)


@pytest.mark.shows("vLLM V1", "preemption")
def test_a_request_that_was_preempted_and_resumed_has_every_position_once(engine: Tapped, reference: Reference) -> None:
    prompts = [[300 + 7 * n + k for k in range(60)] for n in range(12)]
    before = engine.receiver.unseen.get(UnseenReason.SAMPLING, 0)
    done = engine.complete(prompts, [f"squeezed{n}" for n in range(12)], 180)
    assert engine.server.metric("vllm:num_preemptions_total") > 0
    for one in done:
        assert max(worst_error(engine, reference, one, POINTS).values()) < TOLERANCE
        assert all(len(engine.rows(tap_id(one), point)) == len(one.fed) for point in POINTS)
    engine.receiver.wait(lambda r: r.unseen.get(UnseenReason.SAMPLING, 0) > before)  # what was computed again


def test_what_was_computed_is_what_was_seen_and_what_is_accounted_for(engine: Tapped) -> None:
    seen = sum(len(one.segments.positions) for one in engine.receiver.batches)
    engine.receiver.wait(lambda r: r.reports[-1].tokens_computed == seen + sum(r.unseen.values()))
    assert set(engine.receiver.unseen) <= {UnseenReason.SAMPLING}
