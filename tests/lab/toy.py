"""A small language model whose workings are known, because they were written by hand.

Every word carries two numbers of equal size, one along USED and one along UNUSED; both tell a text's label. Block 2 averages what
lies along USED over the text and hands it to the last position, from which the head says "positive" or "negative". Nothing ever
looks along UNUSED. Other directions hold noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probes.activations.facts import StoreFacts
from probes.activations.index import Contents
from probes.activations.model import LabModel
from probes.activations.reader import reading
from probes.activations.store import ActivationStore
from probes.activations.writer import ShardWriter, begin_store
from probes.data.parts import assign_parts
from probes.data.texts import LabelledText, data_digest, text_key
from probes.draft import Draft
from probes.manifest import Aggregation, AggregationKind
from probes.serving import Served
from probes.stages import Part, Places, Training
from sidecar.tap.identity import identify
from sidecar.types import FloatArray, TapPoint

WIDTH, BLOCKS, HEADS = 32, 4, 4
USED, UNUSED = 0, 1
TAP = TapPoint(1)
ANSWER = 20
_NOISE = slice(2, 20)
_KINDS = {"up": 1.0, "down": -1.0, "plain": 0.0}
_WORDS_EACH = 30
_OWN = ("<s>", "<unk>", "Is", "this", "text", "positive", "or", "negative", "?", "This", "is", "yes", "no")


def toy_model(seed: int = 0) -> LabModel:
    """The model, with a tokenizer of one token a word."""
    import torch
    import transformers

    words = _words()
    library: Any = transformers
    config = library.LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = library.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        _write(model, words, seed)
    tokenizer = _tokenizer(words)
    return LabModel(model, tokenizer, identify(model, tokenizer, name="toy"), "")


def toy_texts(n: int = 240, seed: int = 0, *, pairs: bool = False) -> list[LabelledText]:
    """Of six to eleven words; four in five that mean something agree with the label. pairs: text 2i + 1 is 2i turned round."""
    draws = np.random.default_rng([seed, 1])
    texts: list[LabelledText] = []
    for number in range(n // 2):
        for label in (True, False):
            if not pairs or label:
                kinds = draws.choice(["right", "wrong", "plain"], size=int(draws.integers(6, 12)), p=[0.4, 0.1, 0.5])
                places = draws.integers(_WORDS_EACH, size=len(kinds))
            words = [_word(kind, label, place) for kind, place in zip(kinds, places, strict=True)]
            text = " ".join(words)
            name = f"pair {number}" if pairs else ""
            texts.append(LabelledText(text, label, text_key(text), group=name, pair=name))
    return texts


def toy_store(
    folder: Path, lab: LabModel, texts: list[LabelledText], where: TapPoint = TAP, also: Places = ()
) -> ActivationStore:
    """Collect the texts' states at one tap point, and at others."""
    names = [point.name for point in (where, *also)]
    ids = [list(lab.tokenizer(text.text)["input_ids"]) for text in texts]
    with reading(lab.model, [where, *also], 1) as reader:
        read = [reader.read([one]) for one in ids]
    states = {name: [one[name][0] for one in read] for name in names}
    facts = StoreFacts(
        model=lab.binding,
        width=lab.identity.width,
        tap_points=tuple(names),
        widths={name: int(states[name][0].shape[1]) for name in names},
        hook_points=dict.fromkeys(names, "somewhere"),
        chat=False,
        max_tokens=256,
        data_name="toy",
        data_digest=data_digest(texts),
    )
    begin_store(folder, Contents(facts, texts, [f"row {number}" for number in range(len(texts))], ids))
    writer = ShardWriter(folder)
    for shard in writer.missing():
        chosen = writer.index.texts_of(shard)
        writer.write(shard, {name: [states[name][int(text)] for text in chosen] for name in names})
    return ActivationStore.open(folder)


def toy_draft(
    folder: Path,
    store: ActivationStore,
    directions: FloatArray,
    aggregation: Aggregation | None = None,
    where: TapPoint = TAP,
    also: Places = (),
) -> Draft:
    """A draft whose probe reads these directions, [D] or [D, K]; of several tap points below each other."""
    columns = directions.reshape(len(directions), -1)
    served = Served(
        columns, np.zeros(columns.shape[1], np.float32), aggregation or Aggregation(kind=AggregationKind.MEAN)
    )
    draft = Draft(folder)
    draft.write_trained(toy_training(store, served, where, assign_parts(store.texts, 0), also), served)
    return draft


def toy_training(
    store: ActivationStore, served: Served, where: TapPoint, parts: tuple[Part, ...], also: Places = ()
) -> Training:
    return Training(
        name="toy",
        store=str(store.folder),
        store_digest=store.digest,
        kind="given",
        tap_point=where.name,
        also=tuple(point.name for point in also),
        aggregation=served.aggregation,
        strength=1.0,
        seed=0,
        parts=parts,
        select_auroc=1.0,
        candidates=(),
        seconds=0.0,
    )


def axis(place: int, *, sign: float = 1.0) -> FloatArray:
    """The unit vector along one coordinate, float32 [WIDTH]."""
    vector = np.zeros(WIDTH, np.float32)
    vector[place] = sign
    return vector


def _write(model: Any, words: list[str], seed: int) -> None:
    import torch

    for block in model.model.layers:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    attention = model.model.layers[2].self_attn
    attention.q_proj.weight.zero_()  # looks at all positions alike
    attention.v_proj.weight.zero_()
    attention.v_proj.weight[0, USED] = 1.0
    attention.v_proj.weight[1:17, _NOISE.start : _NOISE.start + 16] = 2 * torch.eye(16)  # written, and never read
    attention.o_proj.weight[ANSWER, 0] = 8.0
    model.lm_head.weight.zero_()
    model.lm_head.weight[words.index("positive"), ANSWER] = 1.0
    model.lm_head.weight[words.index("negative"), ANSWER] = -1.0
    model.model.embed_tokens.weight.copy_(torch.from_numpy(_embeddings(words, seed)))


def _embeddings(words: list[str], seed: int) -> FloatArray:
    draws = np.random.default_rng([seed, 2])
    rows = np.zeros((len(words), WIDTH))
    rows[:, _NOISE] = draws.normal(size=(len(words), _NOISE.stop - _NOISE.start))
    for place, word in enumerate(words):
        kind = _KINDS.get(word.rstrip("0123456789"))
        if kind is not None:
            rows[place, [USED, UNUSED]] = 1.5 * kind + 0.3 * draws.normal(size=2)
    return rows.astype(np.float32)


def _word(kind: str, label: bool, place: int) -> str:
    if kind == "plain":
        return f"plain{place}"
    return f"{'up' if label == (kind == 'right') else 'down'}{place}"


def _words() -> list[str]:
    return [*_OWN, *(f"{kind}{place}" for kind in _KINDS for place in range(_WORDS_EACH))]


def _tokenizer(words: list[str]) -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    library: Any = transformers
    return library.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
