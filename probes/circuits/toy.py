"""A small transformer whose circuit is known: trained to go on with what it has seen, it grows an induction circuit.

Texts are random words without repetition, and then pieces of that again. Nothing but the words tells what comes next, so the
model must look up what followed a word when it came first: a head in block 0 writes into each word's state which word came
before (a previous-token head), and a head in block 1 looks for the state that was told of the present word (an induction head).
Now and then the word BACK comes, and after it always the text's first word again: other work, for other heads. Each head costs
something, so that the model does no work twice.

``python -m probes.circuits.toy FOLDER`` trains it in a minute on one core, the same for the same seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.circuits.pairs import Contrast

if TYPE_CHECKING:
    import torch

WORDS = 64  # of which the first begins every text, and the second is BACK
BACK = 1
FIRST = 20  # words that are shown first, each once
AGAIN = 20  # words that are shown again, in pieces
_PIECE = (2, 5)  # words of a piece, from and below
_BATCH = 64
_BACK_SHARE = 0.25  # of the pieces
_STEPS = 1500
_WARM = 100
_RATE = 3e-3
_HEAD_COST = 1e-2
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Texts:
    """ids: [n, 1 + FIRST + AGAIN]. known: bool, of the same shape: whether the word can be known from what is before it."""

    ids: Ids
    known: npt.NDArray[np.bool_]


def texts(n: int, draws: np.random.Generator) -> Texts:
    """Random ones, of one length."""
    ids = np.zeros((n, 1 + FIRST + AGAIN), np.int64)
    known = np.zeros(ids.shape, np.bool_)
    for row in range(n):
        first = _words(draws, FIRST)
        ids[row, 1 : 1 + FIRST] = first
        at = 1 + FIRST
        while at < ids.shape[1]:
            piece = _piece(first, draws)[: ids.shape[1] - at]
            ids[row, at : at + len(piece)] = piece
            known[row, at + 1 : at + len(piece)] = True
            at += len(piece)
    return Texts(ids, known)


def toy_pairs(n: int, seed: int = 0) -> tuple[Contrast, ...]:
    """Contrast pairs. Clean: "... a b ... c d ... a" goes on with b. Corrupt: a and c have changed places, so that it is d."""
    draws = np.random.default_rng([seed, 3])
    return tuple(_pair(draws, number) for number in range(n))


def accuracy(model: Any, n: int = 256, seed: int = 0) -> float:
    """Share of the words that can be known which the model expects most, on texts that no training saw."""
    import torch

    drawn = texts(n, np.random.default_rng([seed, 2]))
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(drawn.ids)).logits[:, :-1].argmax(-1).numpy()
    right = expected == drawn.ids[:, 1:]
    return float(right[drawn.known[:, 1:]].mean())


def train(seed: int = 0, steps: int = _STEPS, told: Callable[[str], None] = lambda _text: None) -> Any:
    """A `LlamaForCausalLM` in float32, on one thread; the same for the same seed and version of torch."""
    import torch

    torch.set_num_threads(1)
    model = _untrained(seed)
    draws = np.random.default_rng([seed, 1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    model.train()
    for step in range(steps):
        loss = _loss(model, texts(_BATCH, draws)) + _HEAD_COST * _head_costs(model)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        if step % 200 == 0:
            told(f"step {step}: loss {loss.item():.3f}")
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """As a transformers folder with a tokenizer of one word a token: "<s>", "back", w2, w3 and so on."""
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m probes.circuits.toy", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=_STEPS)
    given = parser.parse_args(arguments)
    model = train(given.seed, given.steps, lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201 - progress
    save(model, given.folder)
    print(f"{given.folder}: {accuracy(model):.2%} of the words that can be known")  # noqa: T201 - this is its output
    return 0


def _piece(first: Ids, draws: np.random.Generator) -> Ids:
    if draws.random() < _BACK_SHARE:
        return np.array([BACK, first[0]])
    start, size = int(draws.integers(FIRST)), int(draws.integers(*_PIECE))
    return first[start : start + size]


def _head_costs(model: Any) -> torch.Tensor:
    """The sum over heads of the size of what each can write, |W_O W_V|: a price for every head that is not needed."""
    import torch

    costs = []
    for block in model.model.layers:
        attention = block.self_attn
        size = attention.head_dim
        read = attention.v_proj.weight.unflatten(0, (-1, size))  # [heads, size, D]
        written = attention.o_proj.weight.unflatten(1, (-1, size)).movedim(1, 0)  # [heads, D, size]
        costs.append(torch.linalg.matrix_norm(written @ read).sum())
    return torch.stack(costs).sum()


def _loss(model: Any, drawn: Texts) -> torch.Tensor:
    import torch

    ids = torch.from_numpy(drawn.ids)
    known = torch.from_numpy(drawn.known[:, 1:])
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits[known], ids[:, 1:][known])


def _rate(step: int, steps: int) -> float:
    """Up for a hundred steps, then down to nothing along a straight line."""
    return min(1.0, (step + 1) / _WARM) * (1 - step / steps)


def _untrained(seed: int) -> Any:
    import torch
    import transformers

    library: Any = transformers
    config = library.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    return library.LlamaForCausalLM(config)


def _words(draws: np.random.Generator, n: int) -> Ids:
    return draws.choice(np.arange(BACK + 1, WORDS), n, replace=False)


def _pair(draws: np.random.Generator, number: int) -> Contrast:
    first = _words(draws, FIRST)
    asked, other = draws.choice(np.arange(FIRST // 2) * 2, 2, replace=False)  # never beside each other
    swapped = first.copy()
    swapped[[asked, other]] = first[[other, asked]]
    clean, corrupt = ([0, *map(int, words), int(first[asked])] for words in (first, swapped))
    return Contrast(
        tuple(clean), tuple(corrupt), (int(first[asked + 1]),), (int(first[other + 1]),), f"toy pair {number}"
    )


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<s>": 0, "back": BACK} | {f"w{number}": number for number in range(BACK + 1, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    library: Any = transformers
    return library.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<s>")  # noqa: S106


if __name__ == "__main__":
    sys.exit(main())
