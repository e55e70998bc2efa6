"""The real model, real prompts, every row: what the tap delivers is what the model computes for each request by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tap.conftest import MakeReceiver
from tests.tap.engine import alone, padding_noise, tapped, worst_difference
from tests.tap.models import library
from tests.tap.receiver import Receiver, control

pytestmark = pytest.mark.model

TEXTS = [
    "What is the capital of Switzerland?",
    "Write one sentence about the sea, please, and do not use the word blue anywhere in it.",
    "Hi",
    "The film was a delight from its first frame to its last, and I would watch it again tomorrow. Is that praise?",
]
LAYERS = (0, 14, 28)
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def served(smollm2: Path) -> tuple[Any, list[list[int]]]:
    tokenizer = library().AutoTokenizer.from_pretrained(smollm2)
    model = library().AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in TEXTS
    ]
    return model, prompts


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control(LAYERS))


def _check(model: Any, receiver: Receiver, sequences: dict[str, list[int]], prompts: list[list[int]]) -> None:
    """Tolerance from data: 4 times what padding and batching move the states without a tap, per layer."""
    noise = padding_noise(model, prompts, *LAYERS)
    assert min(noise) > 0
    rows = [receiver.rows(layer) for layer in LAYERS]
    assert all(found.keys() == sequences.keys() for found in rows)
    for name, tokens in sequences.items():
        for found, wanted, moved in zip(rows, alone(model, tokens, *LAYERS), noise, strict=True):
            assert worst_difference(found[name], wanted) <= 4 * moved


def test_a_left_padded_batch_is_read_row_by_row(served: tuple[Any, list[list[int]]], receiver: Receiver) -> None:
    model, prompts = served
    width = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    plain = model.generate(ids, **settings)
    names = [f"chat-{number}" for number in range(len(prompts))]
    with tapped(model, receiver) as tap, tap.requests(names):
        output = model.generate(ids, **settings)
        assert tap.errors() == {}
    assert torch.equal(output, plain)
    sequences = {}
    eos = model.generation_config.eos_token_id
    for name, prompt, row in zip(names, prompts, output.tolist(), strict=True):
        made = row[width:]
        sequences[name] = prompt + made[: made.index(eos) if eos in made else -1]
    _check(model, receiver, sequences, prompts)


@pytest.mark.shows("transformers", "continuous batching")
def test_continuous_batching_is_read_row_by_row(served: tuple[Any, list[list[int]]], receiver: Receiver) -> None:
    model, prompts = served
    config = library().GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=model.generation_config.eos_token_id
    )
    batching = library().ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32, seed=0)
    with tapped(model, receiver) as tap:
        outputs = model.generate_batch(prompts, generation_config=config, continuous_batching_config=batching)
        assert tap.errors() == {}
    sequences = {name: (one.prompt_ids + one.generated_tokens)[:-1] for name, one in outputs.items()}
    _check(model, receiver, sequences, prompts)


def test_logits_are_bitwise_the_same_with_and_without_the_tap(
    served: tuple[Any, list[list[int]]], receiver: Receiver
) -> None:
    model, prompts = served
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        plain = model(ids).logits
        with tapped(model, receiver):
            watched = model(ids).logits
    assert torch.equal(plain, watched)
