"""A compiled vLLM with prefix caching and chunked prefill: every row is whose and where the tap says, held against transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.identity import tokenizer_digest
from sidecar.types import Site, TapPoint, UnseenReason
from tests.engines.environment import Environment
from tests.engines.models import LAYERS, WIDTH, tiny_model
from tests.engines.projected import assert_projected, assert_swapped
from tests.engines.reference import Reference
from tests.engines.tapped import Tapped, asking, tap_id, tapped, worst_error

POINTS = (TapPoint(1), TapPoint(2, Site.ATTN_HEADS), TapPoint(2, Site.MLP_OUT), TapPoint(3))
CHUNK = 128
# Two implementations of one float32 model: a few hundred roundings of 6e-8 behind one another, and sums in another order.
TOLERANCE = 2e-4
PREFILL, DECODE = ingest_pb2.PHASE_PREFILL, ingest_pb2.PHASE_DECODE


@pytest.fixture(scope="module")
def engine(vllm: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    folder = tmp_path_factory.mktemp("c")
    flags = (f"--max-num-batched-tokens={CHUNK}", "--enable-chunked-prefill")
    with tapped(vllm, tiny_model("llama"), folder, *flags, points=POINTS, eager=False) as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(tiny_model("llama"))


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 20_000) for _ in range(length)]


@pytest.mark.shows("vLLM V1", "continuous batching")
@pytest.mark.shows("vLLM V1", "torch.compile")
@pytest.mark.shows("vLLM V1", "heads and MLPs")
def test_every_row_of_concurrent_requests_of_mixed_lengths_is_the_models_own(
    engine: Tapped, reference: Reference
) -> None:
    lengths = (3, 290, 17, 1, 64, 130, 257, 9)
    done = engine.complete([prompt(n, length) for n, length in enumerate(lengths)], [f"mix{n}" for n in range(8)], 24)
    worst = [worst_error(engine, reference, one, POINTS) for one in done]
    assert max(max(one.values()) for one in worst) < TOLERANCE
    assert all(len(engine.rows(tap_id(one), point)) == len(one.fed) for one in done for point in POINTS)


@pytest.mark.shows("vLLM V1", "chunked prefill")
def test_a_prompt_in_chunks_has_rows_at_its_own_positions_and_its_phases_tell_the_prompt_from_the_answer(
    engine: Tapped,
) -> None:
    (done,) = engine.complete([prompt(100, 3 * CHUNK + 5)], ["chunked"], 8)
    segments = engine.segments(tap_id(done))
    chunks = [one for one in segments if one.phase == PREFILL]
    assert len(chunks) >= 4
    assert [position for one in segments for position in one.positions] == list(range(len(done.fed)))
    assert {one.prompt_tokens for one in segments} == {len(done.prompt)}
    decoded = [position for one in segments if one.phase == DECODE for position in one.positions]
    assert decoded == list(range(len(done.prompt), len(done.fed)))


@pytest.mark.shows("vLLM V1", "prefix cache")
def test_what_the_prefix_cache_had_is_said_to_be_unseen_and_never_made_up(engine: Tapped, reference: Reference) -> None:
    shared = prompt(200, 300)
    (first,) = engine.complete([[*shared, 5, 6]], ["warms"], 4)
    (second,) = engine.complete([[*shared, 7, 8, 9]], ["hits"], 4)
    assert max(worst_error(engine, reference, second, POINTS).values()) < TOLERANCE
    told = engine.segments(tap_id(second))[0].unseen
    rows = engine.rows(tap_id(second), POINTS[0])
    assert set(told) == {UnseenReason.PREFIX_CACHE}
    assert told[UnseenReason.PREFIX_CACHE] >= 128  # whole blocks of the engine's
    assert sorted(rows) == list(range(told[UnseenReason.PREFIX_CACHE], len(second.fed)))
    assert len(engine.rows(tap_id(first), POINTS[0])) == len(first.fed)


@pytest.mark.shows("vLLM V1", "aborts")
def test_an_aborted_request_is_over_and_those_beside_it_lose_no_row(engine: Tapped, reference: Reference) -> None:
    with engine.server.stream(prompt(300, 40), request_id="left", max_tokens=900, ignore_eos=True) as chunks:
        for _ in range(3):
            next(chunks)
        done = engine.complete([prompt(301, 50)], ["stays"], 12)
    engine.wait_for_end("cmpl-left-0")
    assert max(worst_error(engine, reference, done[0], POINTS).values()) < TOLERANCE
    seen = sorted(engine.rows("cmpl-left-0", POINTS[0]))
    assert seen == list(range(len(seen)))
    assert 42 <= len(seen) < 900


@pytest.mark.shows("vLLM V1", "sampling per request")
def test_a_caller_says_which_requests_are_captured_and_which_trace_they_belong_to(engine: Tapped) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    asked = {"traceparent": parent, "stethoscope_route": "chat", "stethoscope_canary": "true"}  # which is no token
    engine.ask(asking(*POINTS, fraction=1e-9))
    (always,) = engine.complete([prompt(400, 20)], ["wanted"], 4, vllm_xargs={"stethoscope": "always", **asked})
    engine.ask(asking(*POINTS))
    engine.server.complete(prompt(401, 20), request_id="unwanted", max_tokens=4, vllm_xargs={"stethoscope": "never"})
    segment = engine.segments(tap_id(always))[0]
    assert (segment.traceparent, segment.route, segment.canary) == (parent, "chat", False)
    assert len(engine.rows(tap_id(always), POINTS[0])) == len(always.fed)
    engine.complete([prompt(402, 5)], ["after"], 2)
    assert engine.rows("cmpl-unwanted-0", POINTS[0]) == {}


def test_a_share_of_requests_that_the_sidecar_asks_for_is_what_is_captured(engine: Tapped) -> None:
    engine.ask(asking(*POINTS, fraction=0.5))
    before = dict(engine.receiver.unseen)
    ended = len(engine.receiver.finished)
    names = [f"share{n}" for n in range(24)]
    done = [engine.server.complete(prompt(500 + n, 8), request_id=name, max_tokens=2) for n, name in enumerate(names)]
    engine.ask(asking(*POINTS))
    engine.complete([prompt(530, 8)], ["behind"], 2)  # all that those had to send came before it
    chosen = [one for one in done if engine.rows(tap_id(one), POINTS[0])]
    assert 4 <= len(chosen) <= 20
    assert all(len(engine.rows(tap_id(one), POINTS[0])) == len(one.fed) for one in chosen)
    over = set(engine.receiver.finished[ended:])
    assert over & {tap_id(one) for one in done} == {tap_id(one) for one in chosen}
    left_out = sum(len(one.fed) for one in done if one not in chosen)
    engine.receiver.wait(
        lambda r: r.unseen.get(UnseenReason.SAMPLING, 0) - before.get(UnseenReason.SAMPLING, 0) >= left_out
    )


@pytest.mark.shows("vLLM V1", "projected mode")
def test_readings_made_in_the_engine_are_those_of_its_rows_within_the_stated_bound(
    engine: Tapped, reference: Reference
) -> None:
    assert_projected(engine, reference, prompt(600, 60), TOLERANCE, TOLERANCE)


@pytest.mark.shows("vLLM V1", "projected mode")
def test_another_plan_is_swapped_in_while_a_request_is_answered_and_no_position_is_lost(engine: Tapped) -> None:
    assert_swapped(engine, prompt(700, 40))


def test_the_engine_says_which_model_it_has_and_what_it_computed(engine: Tapped) -> None:
    from transformers import AutoTokenizer

    model = engine.receiver.registrations[0].model
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    assert (model.engine, model.engine_version) == ("vllm", "0.32.0")
    assert (model.architecture, model.layers, model.width) == ("LlamaForCausalLM", LAYERS, WIDTH)
    assert model.tokenizer_digest == tokenizer_digest(tokenizer)
    assert len(model.weights_digest) == 64
    assert engine.receiver.registrations[0].engine_id == "vllm-under-test"
    log = "\n".join(engine.server.log)
    assert all(f"self_test tap_point={point.name}: states come" in log for point in POINTS)
    assert f"{POINTS[0].name}:auxiliary" in log
    assert f"{POINTS[1].name}:operator" in log
    assert UnseenReason.TAP_DROPPED not in engine.receiver.unseen
    assert UnseenReason.UNSUPPORTED not in engine.receiver.unseen
