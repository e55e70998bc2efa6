"""States of a real model on texts as its chat users would send them: what the served engine computes, row by row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.blocks import empty_states, reading_blocks
from probes.states import States, kept_states
from sidecar.types import FloatArray, ModelIdentity

if TYPE_CHECKING:
    from rich.progress import Progress

# Tokens of one forward pass. Larger batches are no faster on one core and only take memory.
_BATCH_TOKENS = 1024
_GENERATE_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class LabModel:
    """A loaded model with the names by which artifacts are bound to it."""

    model: Any
    tokenizer: Any
    identity: ModelIdentity
    template_digest: str


def load_lab_model(folder: Path) -> LabModel:
    """Load a model in float32 on one thread (two on busy cores are slower by far) and fingerprint it as the tap does."""
    import torch
    import transformers

    from sidecar.tap.identity import identify, text_digest

    torch.set_num_threads(1)
    auto: Any = transformers  # its loaders have no types
    auto.utils.logging.disable_progress_bar()
    model = auto.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = auto.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    identity = identify(model, tokenizer, name=folder.name)
    return LabModel(model, tokenizer, identity, text_digest(tokenizer.chat_template))


def chat_ids(lab: LabModel, text: str) -> list[int]:
    """Token ids of one user message through the model's chat template, ready for its answer; of the text alone without one."""
    if not lab.tokenizer.chat_template:
        return list(lab.tokenizer(text)["input_ids"])
    messages = [{"role": "user", "content": text}]
    return list(lab.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def collect(lab: LabModel, ids: Sequence[Sequence[int]], layers: Sequence[int], bars: Progress) -> dict[int, States]:
    """States after each of ``layers`` for every token of every text, by layer.

    ids: one non-empty list of token ids a text. The rows are those of a forward of each text alone, up to rounding (float32,
    other batch shapes). They are kept on disk, and found there the next time.
    """
    return kept_states(lab.identity.weights_digest, ids, layers, lambda: _compute(lab, ids, sorted(layers), bars))


def generate(lab: LabModel, prompts: Sequence[str], tokens: int, bars: Progress) -> list[list[int]]:
    """Token ids of each chat with the model's own greedy answer of at most ``tokens`` tokens, end-of-turn included."""
    groups = [prompts[at : at + _GENERATE_AT_ONCE] for at in range(0, len(prompts), _GENERATE_AT_ONCE)]
    chats: list[list[int]] = []
    for group in bars.track(groups, description="generating answers"):
        chats.extend(_answered(lab, [chat_ids(lab, prompt) for prompt in group], tokens))
    return chats


def _answered(lab: LabModel, asked: list[list[int]], tokens: int) -> list[list[int]]:
    import torch

    end, longest = int(lab.model.config.eos_token_id), max(map(len, asked))
    ids = torch.tensor([[end] * (longest - len(text)) + text for text in asked])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in asked])
    with torch.inference_mode():
        out = lab.model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=end)
    answers = [answer.tolist() for answer in out[:, longest:]]
    cut = [answer[: answer.index(end) + 1] if end in answer else answer for answer in answers]
    return [text + answer for text, answer in zip(asked, cut, strict=True)]


def _compute(lab: LabModel, ids: Sequence[Sequence[int]], layers: Sequence[int], bars: Progress) -> dict[int, States]:
    shared = _shared_beginning(ids)
    tails = [list(text[shared:]) for text in ids]
    starts = np.concatenate([[0], np.cumsum([len(tail) for tail in tails])]).astype(int).tolist()
    found = {layer: np.empty((starts[-1], lab.identity.width), np.float32) for layer in layers}
    task = bars.add_task(f"reading {len(ids)} texts", total=starts[-1])
    with reading_blocks(lab.model, layers) as reader:
        prefix = reader.begin(ids[0][:shared])
        for batch in _batches(tails):
            states = reader.read([tails[index] for index in batch])
            for layer in layers:
                _place(found[layer], starts, batch, states[layer])
            bars.advance(task, sum(len(tails[index]) for index in batch))
    empty = empty_states(lab.identity.width)
    return {layer: States(prefix.get(layer, empty), found[layer], tuple(starts)) for layer in layers}


def _shared_beginning(ids: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with, leaving each at least one of its own."""
    columns = zip(*ids, strict=False)  # ends with the shortest text
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return min(sum(1 for _ in alike), min(map(len, ids)) - 1)


def _place(found: FloatArray, starts: Sequence[int], batch: Sequence[int], states: Sequence[FloatArray]) -> None:
    for index, of_text in zip(batch, states, strict=True):
        found[starts[index] : starts[index + 1]] = of_text


def _batches(tails: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Texts of similar length together, so that little is padded."""
    batch: list[int] = []
    for index in sorted(range(len(tails)), key=lambda index: (len(tails[index]), index)):
        if batch and (len(batch) + 1) * len(tails[index]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch
