"""However a model generates: every row is that of its own request, once, at its own position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sidecar.types import Phase, UnseenReason
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import PROMPTS, alone, tapped, worst_difference
from tests.tap.generating import NAMES, TOLERANCE, check, generate, sequences_of
from tests.tap.models import ARCHITECTURES, PAD, library, tiny
from tests.tap.receiver import Receiver, control


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1, 2)))


@pytest.fixture
def model() -> Any:
    return tiny()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_is_its_requests_state_at_its_position(architecture: str, receiver: Receiver) -> None:
    model = tiny(architecture)
    plain = generate(model)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = generate(model)
    assert torch.equal(output, plain)
    assert tap.errors() == {}
    sequences = sequences_of(output)
    for layer in (1, 2):
        check(model, receiver, sequences, layer)
    computed = sum(map(len, sequences.values()))
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (computed, {})
    assert sorted(receiver.finished) == NAMES


def test_a_finished_row_is_neither_captured_nor_counted(receiver: Receiver) -> None:
    """``generate`` feeds EOS and padding to a row that has ended for as long as others run."""
    model = tiny()
    free = generate(model, eos_token_id=None, max_new_tokens=8)
    eos = int(free[1, max(map(len, PROMPTS)) + 2])  # the third token of the second row ends it
    width = max(map(len, PROMPTS))
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = generate(model, eos_token_id=eos, max_new_tokens=8)
    made = output[1, width:].tolist()
    ended = made.index(eos)
    assert ended < 7
    assert made[ended + 1 :] == [PAD] * (7 - ended)
    rows = receiver.rows(1)
    sequence = PROMPTS[1] + made[:ended]
    assert worst_difference(rows["b"], alone(model, sequence, 1)[0]) < TOLERANCE
    assert receiver.reports[-1].tokens_computed == sum(map(len, rows.values()))
    assert receiver.finished[0] == "b"


def test_a_row_ended_by_any_other_criterion_is_finished_too(receiver: Receiver) -> None:

    def stop_second_row(input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        ended = input_ids.shape[1] >= max(map(len, PROMPTS)) + 2
        return torch.tensor([False, ended, False])

    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        generate(model, eos_token_id=None, stopping_criteria=[stop_second_row])
    assert {name: len(rows) for name, rows in receiver.rows(1).items()} == {"a": 12, "b": 4, "c": 10}


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"prefill_chunk_size": 1},
        {"cache_implementation": "static"},
        {"do_sample": True},
    ],
    ids=str,
)
@pytest.mark.shows("transformers", "chunked prefill")
def test_every_way_of_generating_computes_the_same_rows(settings: dict[str, Any], receiver: Receiver) -> None:
    model = tiny()
    torch.manual_seed(4)
    plain = generate(model, **settings)
    torch.manual_seed(4)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = generate(model, **settings)
    assert torch.equal(output, plain)
    assert tap.errors() == {}
    check(model, receiver, sequences_of(output))
    for name, prompt in zip(NAMES, PROMPTS, strict=True):
        for segment in receiver.segments(name):
            assert segment.prompt_tokens == len(prompt)
            assert segment.phase == (Phase.PREFILL if segment.positions[0] < len(prompt) else Phase.DECODE)


def test_tokens_computed_twice_are_counted_and_sent_once(receiver: Receiver) -> None:
    """Without a cache every step computes the whole sequence again."""
    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        model.generate(
            torch.tensor([PROMPTS[0]]), use_cache=False, max_new_tokens=4, eos_token_id=None, do_sample=False
        )
    computed = sum(len(PROMPTS[0]) + step for step in range(4))
    assert receiver.reports[-1].tokens_computed == computed
    assert receiver.unseen == {UnseenReason.SAMPLING: computed - 10}


def test_several_sequences_per_prompt_are_requests_of_their_own(receiver: Receiver) -> None:
    model = tiny()
    torch.manual_seed(1)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = generate(model, do_sample=True, num_return_sequences=2, eos_token_id=None)
    width = max(map(len, PROMPTS))
    rows = receiver.rows(1)
    names = [f"{name}/{k}" for name in NAMES for k in range(2)]
    for row, name in enumerate(names):
        sequence = PROMPTS[row // 2] + output[row, width:-1].tolist()
        assert worst_difference(rows[name], alone(model, sequence, 1)[0]) < TOLERANCE


def test_every_request_names_its_session_if_the_caller_does_and_as_many_as_there_are(receiver: Receiver) -> None:
    hashes = [f"hash-{number}" for number in range(len(NAMES))]
    with tapped(tiny(), receiver) as tap:
        with tap.requests(NAMES, sessions=hashes):
            generate(tap._model(), eos_token_id=None)
        with tap.requests(["x", "y", "z"]):
            generate(tap._model(), eos_token_id=None)
        with pytest.raises(ValueError, match="1 sessions"), tap.requests(NAMES, sessions=["one"]):
            pass
    assert [{one.session for one in receiver.segments(name)} for name in NAMES] == [{one} for one in hashes]
    assert {one.session for one in receiver.segments("x")} == {""}


def test_beams_keep_positions_and_counts(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        generate(model, num_beams=2, eos_token_id=None)
    rows = receiver.rows(1)
    assert sorted(rows) == sorted(f"{name}/{k}" for name in NAMES for k in range(2))
    assert tap.errors() == {}
    for number, name in enumerate(NAMES):
        prompt = alone(model, PROMPTS[number], 1)[0]
        for k in range(2):
            mine = rows[f"{name}/{k}"]
            assert sorted(mine) == list(range(len(mine)))
            assert worst_difference({p: mine[p] for p in range(len(prompt))}, prompt) < TOLERANCE


@pytest.mark.shows("transformers", "n-gram speculation", how="unseen")
def test_assisted_generation_is_counted_and_not_captured(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap:
        model.generate(torch.tensor([PROMPTS[0]]), prompt_lookup_num_tokens=3, max_new_tokens=4, do_sample=False)
    assert receiver.batches == []
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: receiver.reports[-1].tokens_computed}
    assert len(tap.errors()) == 1


def test_a_second_turn_on_a_kept_cache_tells_what_it_did_not_compute(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap:
        cache = library().DynamicCache(config=model.config)
        with tap.requests(["first"]):
            first = model.generate(
                torch.tensor([PROMPTS[0]]), past_key_values=cache, max_new_tokens=4, eos_token_id=None, do_sample=False
            )
        turn = [*first[0].tolist(), 21, 22, 23]
        with tap.requests(["second"]):
            second = model.generate(
                torch.tensor([turn]), past_key_values=cache, max_new_tokens=3, eos_token_id=None, do_sample=False
            )
    sequence = second[0, :-1].tolist()
    wanted = alone(model, sequence, 1)[0]
    rows = receiver.rows(1)["second"]
    cached = len(first[0]) - 1
    assert sorted(rows) == list(range(cached, len(sequence)))
    assert max(abs(rows[p] - wanted[p]).max() for p in rows) < TOLERANCE
    assert receiver.segments("second")[0].unseen == {UnseenReason.PREFIX_CACHE: cached}
    assert receiver.segments("second")[0].prompt_tokens == len(turn)


def test_a_plain_forward_pass_knows_padding_on_the_right(receiver: Receiver) -> None:
    model = tiny()
    ids, mask = torch.tensor([PROMPTS[0], [*PROMPTS[1], PAD, PAD, PAD, PAD]]), torch.ones(2, 7, dtype=torch.long)
    mask[1, 3:] = 0
    with tapped(model, receiver) as tap, tap.requests(["a", "b"], [f"00-{'1' * 32}-{'2' * 16}-01", ""], route="eval"):
        model(ids, attention_mask=mask)
        model(torch.tensor([PROMPTS[2]]))
    rows = receiver.rows(1)
    for name, prompt in (("a", PROMPTS[0]), ("b", PROMPTS[1])):
        assert worst_difference(rows[name], alone(model, prompt, 1)[0]) < TOLERANCE
    assert [segment.traceparent[:6] for segment in receiver.segments("a")] == ["00-111"]
    assert {segment.route for name in ("a", "b") for segment in receiver.segments(name)} == {"eval"}
    assert len(rows) == 3  # one row does not fit two names: it has a name of its own
    assert sorted(receiver.finished) == sorted(rows)


def test_a_decode_loop_written_by_hand_goes_on_with_its_request(receiver: Receiver) -> None:
    model = tiny()
    tokens = list(PROMPTS[0])
    with tapped(model, receiver), torch.inference_mode():
        output = model(torch.tensor([tokens]), use_cache=True)
        for _ in range(4):
            tokens.append(int(output.logits[0, -1].argmax()))
            output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)
    ((name, rows),) = receiver.rows(1).items()
    assert worst_difference(rows, alone(model, tokens, 1)[0]) < TOLERANCE
    assert [s.phase for s in receiver.segments(name)] == [Phase.PREFILL] + [Phase.DECODE] * 4
