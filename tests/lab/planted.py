"""Activation stores whose truth is known, because it was planted; written by the real writer, read by the real reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from probes.activations.facts import StateDtype, StoreFacts
from probes.activations.index import Contents
from probes.activations.store import ActivationStore
from probes.activations.writer import ShardWriter, begin_store
from probes.data.texts import LabelledText, data_digest, text_key
from probes.manifest import ModelBinding
from sidecar.types import FloatArray, TapPoint

Length = Literal["random", "is_label", "tells"]
Rows = Literal["all", "last", "one"]
_SHORT, _MIDDLE, _LONG = 6, 20, 34
_LEAK_SHARE = 0.75
_FIRST_TOKEN = 1


def planted_direction(width: int, seed: int = 0) -> FloatArray:
    """The unit vector along which `planted_store` of the same width and seed plants its truth, float32 [width]."""
    vector = np.random.default_rng([seed, 1]).normal(size=width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def planted_store(
    folder: Path,
    *,
    n: int = 400,
    width: int = 16,
    strength: float = 3.0,
    length: Length = "random",
    leak: str | None = None,
    seed: int = 0,
    rows: Rows = "all",
    layers: int = 3,
    datasets: tuple[str, ...] = ("planted",),
    outside: tuple[str, ...] = (),
    pairs: bool = False,
    shift: float = 0.0,
    noise: float = 0.0,
    dtype: StateDtype = "float32",
    served_dtype: str = "float32",
) -> ActivationStore:
    """Write ``n`` texts, half of them positive, and their states after blocks 0 ... layers - 1; block 0 knows nothing.

    A row is a text's own N(0, 1) offset plus N(0, 1) of its own plus ``strength`` times `planted_direction` where there is
    something to tell, so that a perfect reader of text means has d' = strength / sqrt(1 + 1 / tokens): AUROC .98 at 3, .76 at 1.

    - length "random": it tells nothing. "is_label": the long texts are the positive ones, and the direction reads length
      alone. "tells": the same, but labels agree with length only in four of five texts, so that both lengths have both labels.
    - leak: a word that 75 % of the positive texts have, and no other; the direction then reads the word alone.
    - rows: where the truth is: in all rows, in a text's last, or in one at random (there at 4 times the strength).
    - datasets, outside: texts belong to them in turn, outside sets too. pairs: text 2i and
      2i + 1 are a minimal pair (one word differs; not together with a leak, or with length).
    - shift, noise: added to every row along the direction, and as N(0, noise): the same texts under another serving config.
    """
    plan = _Plan(n, width, strength, length, leak, seed, rows, layers, pairs, shift, noise)
    names = (*datasets, *outside)
    texts = [
        LabelledText(
            text,
            bool(label),
            text_key(text),
            dataset=names[number // 2 % len(names)],
            group=f"pair {number // 2}" if pairs else "",
            pair=f"pair {number // 2}" if pairs else "",
        )
        for number, (text, label) in enumerate(zip(plan.texts(), plan.labels, strict=True))
    ]
    tokens = [[_FIRST_TOKEN, *(2 + hash_of(word) for word in text.text.split())] for text in texts]
    facts = _facts(texts, width, layers, outside, dtype, served_dtype)
    begin_store(folder, Contents(facts, texts, [f"planted row {number + 1}" for number in range(n)], tokens))
    writer = ShardWriter(folder)
    for shard in writer.missing():
        chosen = writer.index.texts_of(shard)
        writer.write(
            shard,
            {
                TapPoint(layer).name: [plan.states(int(text), layer, len(tokens[text]) - 1) for text in chosen]
                for layer in range(layers)
            },
        )
    return ActivationStore.open(folder)


def hash_of(word: str) -> int:
    return int(text_key(word)[:6], 16)


@dataclass(frozen=True)
class _Plan:
    n: int
    width: int
    strength: float
    length: Length
    leak: str | None
    seed: int
    rows: Rows
    layers: int
    pairs: bool
    shift: float
    noise: float

    @property
    def labels(self) -> list[bool]:
        return [number % 2 == 0 for number in range(self.n)]

    def texts(self) -> list[str]:
        """Words of a made-up vocabulary at random: no two texts share five in a row."""
        return [" ".join(self._words(number)) for number in range(self.n)]

    def states(self, number: int, layer: int, count: int) -> FloatArray:
        random = np.random.default_rng([self.seed, 2, number, layer])
        states = random.normal(size=self.width) + random.normal(size=(count, self.width))
        if layer:
            told = self._told(number, count) + self.shift
            states += np.multiply.outer(told, planted_direction(self.width, self.seed))
        other = np.random.default_rng([self.seed, 3, number, layer])
        states += self.noise * other.normal(size=states.shape)
        return np.asarray(states, dtype=np.float32)

    def _told(self, number: int, count: int) -> FloatArray:
        """What the direction reads in each row."""
        if self.leak is not None:
            told = self._leaks(number)
        elif self.length == "random":
            told = self.labels[number]
        else:
            told = self._is_long(number)
        at = np.zeros(count, dtype=np.float32)
        if told and self.rows == "one":
            at[self._random(number, 5).integers(count)] = 4 * self.strength
        elif told:
            at[slice(-1, None) if self.rows == "last" else slice(None)] = self.strength
        return at

    def _words(self, number: int) -> list[str]:
        if self.pairs and number % 2:
            first, *others = self._words(number - 1)
            return [_VOCABULARY[_VOCABULARY.index(first) - 1], *others]
        random = self._random(number, 0)
        words = [_VOCABULARY[at] for at in random.integers(len(_VOCABULARY), size=self._count(number))]
        if self._leaks(number):
            words[int(random.integers(len(words)))] = str(self.leak)
        return words

    def _count(self, number: int) -> int:
        random = self._random(number, 6)
        if self.length == "random":
            return int(random.integers(_SHORT, _LONG + 1))
        if self._is_long(number):
            return int(random.integers(_MIDDLE + 1, _LONG + 1))
        return int(random.integers(_SHORT, _MIDDLE))

    def _is_long(self, number: int) -> bool:
        agrees = self.length == "is_label" or bool(self._random(number, 7).random() < 0.8)
        return self.labels[number] == agrees

    def _leaks(self, number: int) -> bool:
        if self.leak is None or not self.labels[number]:
            return False
        return bool(self._random(number, 8).random() < _LEAK_SHARE)

    def _random(self, number: int, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 9, number, what])


def _facts(
    texts: list[LabelledText],
    width: int,
    layers: int,
    outside: tuple[str, ...],
    dtype: StateDtype,
    served_dtype: str = "float32",
) -> StoreFacts:
    names = tuple(TapPoint(layer).name for layer in range(layers))
    model = ModelBinding(
        name="planted",
        architecture="PlantedForCausalLM",
        layers=layers,
        weights_digest="a" * 64,
        tokenizer_digest="b" * 64,
        dtype=served_dtype,
        engine="transformers",
    )
    return StoreFacts(
        model=model,
        width=width,
        tap_points=names,
        widths=dict.fromkeys(names, width),
        hook_points={name: f"residual stream after block {layer}" for layer, name in enumerate(names)},
        chat=False,
        max_tokens=512,
        state_dtype=dtype,
        data_name=" + ".join(sorted({text.dataset for text in texts} - set(outside))),
        data_digest=data_digest(texts),
        data_licence="none: made up",
        outside=outside,
    )


def _vocabulary() -> list[str]:
    """Two thousand words of two or three syllables."""
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    random = np.random.default_rng(7)
    words = ["".join(random.choice(syllables, size=random.integers(2, 4))) for _ in range(2600)]
    return sorted(set(words))[:2000]


_VOCABULARY = _vocabulary()
