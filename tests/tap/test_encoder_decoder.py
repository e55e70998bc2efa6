"""Models with an encoder and a decoder: each stack's rows, counted and captured apart, of one and the same request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.transformers.tap import Tap
from sidecar.types import Phase, Site, Stack, TapPoint, UnseenReason
from tests.tap import kinds
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import Values, tapped, worst_difference
from tests.tap.models import PAD
from tests.tap.receiver import Receiver, control
from tests.waiting import until

ENCODER, DECODER = TapPoint(0, stack=Stack.ENCODER), TapPoint(1)
NAMES = ["a", "b"]
TEXTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
TOLERANCE = 1e-5  # ten times what batching moves the states of the T5 by, which are of size 5
POSITIONS = kinds.FRAMES // 2
text_models = pytest.mark.parametrize("make", [kinds.t5, kinds.bart], ids=["t5", "bart"])


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((ENCODER, DECODER)))


def padded() -> dict[str, torch.Tensor]:
    width = max(map(len, TEXTS))
    ids = torch.tensor([text + [PAD] * (width - len(text)) for text in TEXTS])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def sound(windows: int = 1, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, kinds.MEL_BINS, windows * kinds.FRAMES, generator=torch.Generator().manual_seed(3))


def generate(model: Any, inputs: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    output: torch.Tensor = model.generate(**inputs, **{"max_new_tokens": 5, "do_sample": False} | settings)
    return output


def alone(model: Any, inputs: dict[str, torch.Tensor], fed: list[int]) -> tuple[Values, Values]:
    """States after the encoder's block 0 and the decoder's block 1, for one sequence, by the model's own ``hidden_states``."""
    with torch.no_grad():
        output = model(**inputs, decoder_input_ids=torch.tensor([fed]), output_hidden_states=True)
    return output.encoder_hidden_states[1][0].numpy(), output.decoder_hidden_states[2][0].numpy()


def phases(receiver: Receiver, name: str) -> list[tuple[int, int, int]]:
    """(phase, first position, how long the prompt is) of every segment of a request."""
    return [(one.phase, one.positions[0], one.prompt_tokens) for one in receiver.segments(name)]


@text_models
@pytest.mark.shows("transformers", "encoder and decoder")
def test_every_row_is_its_stacks_state_at_its_position(make: Callable[[], Any], receiver: Receiver) -> None:
    model = make()
    plain = generate(model, padded(), eos_token_id=None)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = generate(model, padded(), eos_token_id=None)
        assert tap.errors() == {}
    assert torch.equal(output, plain)
    for row, (name, text) in enumerate(zip(NAMES, TEXTS, strict=True)):
        encoder, decoder = alone(model, {"input_ids": torch.tensor([text])}, output[row, :-1].tolist())
        assert worst_difference(receiver.rows(ENCODER)[name], encoder) < TOLERANCE
        assert worst_difference(receiver.rows(DECODER)[name], decoder) < TOLERANCE
        (first, *rest) = phases(receiver, name)
        assert first == (Phase.ENCODER, 0, len(text))
        assert rest == [(Phase.PREFILL, 0, 1)] + [(Phase.DECODE, position, 1) for position in range(1, 5)]
    assert receiver.finished == NAMES


def test_speech_is_captured_at_the_positions_that_the_encoder_makes_of_its_frames(receiver: Receiver) -> None:
    model, inputs = kinds.whisper(), {"input_features": sound(rows=2)}
    fed: list[torch.Tensor] = []
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        model.get_decoder().register_forward_pre_hook(
            lambda _m, _a, kwargs: fed.append(kwargs["input_ids"]), with_kwargs=True
        )
        model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert tap.errors() == {}
    tokens = torch.cat(fed, dim=1).tolist()
    assert len(tokens[0]) >= 4
    for row, name in enumerate(NAMES):
        encoder, decoder = alone(model, {"input_features": inputs["input_features"][row : row + 1]}, tokens[row])
        assert encoder.shape[0] == POSITIONS
        assert worst_difference(receiver.rows(ENCODER)[name], encoder) < TOLERANCE
        assert worst_difference(receiver.rows(DECODER)[name], decoder) < TOLERANCE


def test_each_stack_is_expected_to_see_its_own_tokens_alone(receiver: Receiver) -> None:
    model = kinds.t5()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        generate(model, padded(), eos_token_id=None)
    report = receiver.reports[-1]
    encoded, decoded = sum(map(len, TEXTS)), len(TEXTS) * 5
    assert (report.tokens_computed, report.encoder_tokens_computed, report.encoder_tokens_left_out) == (
        encoded + decoded,
        encoded,
        0,
    )
    assert (report.requests, receiver.unseen) == (2, {})
    assert sum(map(len, receiver.rows(ENCODER).values())) == encoded
    assert sum(map(len, receiver.rows(DECODER).values())) == decoded
    for batch in receiver.batches:
        (stack,) = {tensor.tap_point.stack for tensor in batch.tensors}
        assert (stack == ingest_pb2.STACK_ENCODER) == (set(batch.segments.phases) == {Phase.ENCODER})


def test_a_stack_that_nobody_asks_for_is_left_out_on_purpose(make_receiver: MakeReceiver) -> None:
    receiver, model = make_receiver(control((DECODER,))), kinds.t5()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        generate(model, padded(), eos_token_id=None)
    report, encoded = receiver.reports[-1], sum(map(len, TEXTS))
    assert (report.encoder_tokens_computed, report.encoder_tokens_left_out) == (encoded, encoded)
    assert receiver.unseen == {UnseenReason.SAMPLING: encoded}
    assert {phase for batch in receiver.batches for phase in batch.segments.phases} == {Phase.PREFILL, Phase.DECODE}
    assert receiver.finished == NAMES


@pytest.mark.parametrize("make", [kinds.t5, kinds.bart, kinds.whisper], ids=["t5", "bart", "whisper"])
def test_heads_and_mlps_of_both_stacks_are_bitwise_those_of_hooks_of_ones_own(
    make: Callable[[], Any], make_receiver: MakeReceiver
) -> None:
    """T5 numbers its parts, and its decoder has one more than its encoder; the heads are those of self-attention."""
    model = make()
    t5 = type(model).__name__.startswith("T5")
    layers = "block" if t5 else "layers"
    seen: dict[TapPoint, list[Any]] = {}
    points = tuple(TapPoint(1, site, stack) for stack in Stack for site in (Site.ATTN_HEADS, Site.MLP_OUT))
    receiver = make_receiver(control(points))
    for stack, root in ((Stack.ENCODER, model.get_encoder()), (Stack.DECODER, model.get_decoder())):
        block = root.get_submodule(f"{layers}.1")
        out = block.layer[0].SelfAttention.o if t5 else block.self_attn.out_proj
        mlp = block.layer[-1].DenseReluDense if t5 else block.fc2
        heads, mlps = TapPoint(1, Site.ATTN_HEADS, stack), TapPoint(1, Site.MLP_OUT, stack)
        out.register_forward_pre_hook(lambda _m, args, at=heads: seen.setdefault(at, []).append(args[0][0].clone()))
        mlp.register_forward_hook(lambda _m, _a, output, at=mlps: seen.setdefault(at, []).append(output[0].clone()))
    inputs = (
        {"input_features": sound()}
        if model.main_input_name == "input_features"
        else {"input_ids": torch.tensor([TEXTS[0]])}
    )
    with tapped(model, receiver) as tap, tap.requests(["a"]), torch.no_grad():
        seen.clear()  # what was made up for the self-test
        model(**inputs, decoder_input_ids=torch.tensor([[0, 7, 9]]))
        assert (set(tap.points), tap.errors()) == (set(points), {})
    for point in points:
        rows, (wanted,) = receiver.rows(point)["a"], seen[point]
        assert sorted(rows) == list(range(len(wanted)))
        assert all(np.array_equal(rows[position], wanted[position]) for position in rows)


def test_hypotheses_of_a_beam_search_share_what_was_encoded(receiver: Receiver) -> None:
    model = kinds.t5()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        generate(model, padded(), num_beams=2, eos_token_id=None)
        assert tap.errors() == {}
    assert sorted(receiver.rows(ENCODER)) == NAMES
    assert sorted(receiver.rows(DECODER)) == ["a/0", "a/1", "b/0", "b/1"]
    assert sorted(receiver.finished) == ["a", "a/0", "a/1", "b", "b/0", "b/1"]
    assert {len(rows) for rows in receiver.rows(DECODER).values()} == {5}


def test_hypotheses_are_sampled_as_what_they_were_encoded_from(make_receiver: MakeReceiver) -> None:
    """Every other request is chosen, by its name; a hypothesis has another name, and no draw of its own."""
    receiver, model = make_receiver(control((ENCODER, DECODER), fraction=0.5)), kinds.t5()
    for number in range(6):
        with tapped(model, receiver) as tap, tap.requests([f"r{number}"]):
            generate(model, {"input_ids": torch.tensor([TEXTS[0]])}, num_beams=2, eos_token_id=None)
    encoded = set(receiver.rows(ENCODER))
    assert 0 < len(encoded) < 6
    assert set(receiver.rows(DECODER)) == {f"{name}/{k}" for name in encoded for k in range(2)}


@pytest.mark.parametrize("rows", [1, 2])
def test_every_window_of_long_speech_is_a_request_of_its_own(rows: int, receiver: Receiver) -> None:
    """That all rows of a window have ended says nothing of the next one's."""
    model = kinds.whisper()
    with tapped(model, receiver) as tap, tap.requests(NAMES[:rows]):
        model.generate(
            sound(windows=3, rows=rows),
            attention_mask=torch.ones(rows, 3 * kinds.FRAMES, dtype=torch.long),
            max_new_tokens=4,
            return_timestamps=True,
            do_sample=False,
        )
        assert tap.errors() == {}
    encoded, decoded = receiver.rows(ENCODER), receiver.rows(DECODER)
    windows = [name for name in encoded if name.startswith("a")]
    assert len(windows) >= 3
    assert windows == ["a", *(f"a#{n}" for n in range(1, len(windows)))]
    assert sorted(receiver.finished) == sorted(encoded) == sorted(decoded)
    assert {len(found) for found in encoded.values()} == {POSITIONS}
    assert {len(found) for found in decoded.values()} == {4}
    report = receiver.reports[-1]
    assert report.encoder_tokens_computed == len(encoded) * POSITIONS
    assert (report.tokens_computed - report.encoder_tokens_computed, receiver.unseen) == (4 * len(decoded), {})


def test_a_decode_loop_written_by_hand_goes_on_with_what_was_encoded(receiver: Receiver) -> None:
    model, fed = kinds.bart(), [0]
    ids = torch.tensor([TEXTS[0]])
    with tapped(model, receiver) as tap, tap.requests(["a"]), torch.inference_mode():
        encoded, cache = model.get_encoder()(ids), None
        for _ in range(4):
            output = model(
                encoder_outputs=encoded,
                decoder_input_ids=torch.tensor([fed[-1:]]),
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            fed.append(int(output.logits[0, -1].argmax()))
    encoder, decoder = alone(model, {"input_ids": ids}, fed[:-1])
    assert worst_difference(receiver.rows(ENCODER)["a"], encoder) < TOLERANCE
    assert worst_difference(receiver.rows(DECODER)["a"], decoder) < TOLERANCE
    assert (receiver.reports[-1].requests, receiver.finished) == (1, ["a"])


def test_a_second_text_on_the_same_thread_is_another_request(receiver: Receiver) -> None:
    model = kinds.bart()
    with tapped(model, receiver), torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.tensor([text]), decoder_input_ids=torch.tensor([[0, 7]]))
    rows = receiver.rows(ENCODER)
    assert sorted(map(len, rows.values())) == sorted(map(len, TEXTS))
    assert rows.keys() == receiver.rows(DECODER).keys() == set(receiver.finished)


def test_a_row_that_ended_is_neither_captured_nor_counted(receiver: Receiver) -> None:
    model = kinds.t5()
    free = generate(model, padded(), eos_token_id=None)
    eos = int(free[1, 2])
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = generate(model, padded(), eos_token_id=eos)
    fed = [row.index(eos) if eos in row else len(row) - 1 for row in output[:, :].tolist()]
    assert fed[1] < 5
    assert [len(receiver.rows(DECODER)[name]) for name in NAMES] == fed
    assert receiver.reports[-1].tokens_computed == sum(fed) + sum(map(len, TEXTS))


def test_a_block_on_what_the_encoder_read_ends_the_generation(receiver: Receiver) -> None:
    """The verdict may come before the decoder has run at all."""

    def answer(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        result = ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED, plan_generation=1)
        if batch.segments.phases[0] == ingest_pb2.PHASE_ENCODER:
            result.verdicts.add(request_id="b", action=ingest_pb2.ACTION_BLOCK).signals.add(name="harm", score=0.9)
        return result

    def judged(tap: Tap) -> None:
        until(lambda: "b" not in tap._stops._live)

    receiver.answer = answer
    model = kinds.t5()
    with tapped(model, receiver, stop_on_block=True) as tap, tap.requests(NAMES):
        waiting = model.get_decoder().register_forward_pre_hook(lambda *_: judged(tap), prepend=True)
        output = generate(model, padded(), eos_token_id=None)
        waiting.remove()
        assert (tap.stopped, tap.errors()) == (1, {})
    assert output[1, 2:].tolist() == [PAD] * (output.shape[1] - 2)
    assert (output[0] != PAD).all()


def test_an_encoder_whose_positions_are_known_only_when_it_has_run_is_counted_and_not_captured(
    receiver: Receiver,
) -> None:
    model = kinds.whisper()
    model.get_encoder()._get_feat_extract_output_lengths = None
    with tapped(model, receiver) as tap, tap.requests(["a"]), torch.no_grad():
        model(input_features=sound(), decoder_input_ids=torch.tensor([[0, 7]]))
        assert tap.errors() == {"an encoder whose input does not tell how many positions it has": 1}
    assert receiver.rows(ENCODER) == {}
    assert receiver.reports[-1].encoder_tokens_computed == POSITIONS
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: POSITIONS}
    assert len(receiver.rows(DECODER)["a"]) == 2


def test_the_sidecar_is_told_how_deep_each_stack_is(receiver: Receiver) -> None:
    with tapped(kinds.whisper(), receiver):
        pass
    told = receiver.registrations[-1].model
    assert (told.layers, told.encoder_layers, told.architecture) == (3, 2, "WhisperForConditionalGeneration")
