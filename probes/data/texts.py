"""A labelled text, and what makes two texts the same text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text that is read by a probe. Made by `probes.data.reading.load_texts`.

    key: hex SHA-256 of the normalised text. group: rows of one group never fall into different parts; "" is a group of
    its own. dataset: for leaving one data set out, and for outside sets. pair: an id that the two texts of a minimal pair
    share (one positive, one negative), or "".
    """

    text: str
    label: bool
    key: str
    group: str = ""
    dataset: str = ""
    pair: str = ""


def normalised(text: str) -> str:
    """Reduce a text to its words, without case, marks and spacing. A text without any word keeps its marks.

    Digits are kept: "3 > 7" and "7 > 3" are two texts. `folded` takes them out.

    >>> normalised("Good  FILM!"), normalised(":-)")
    ('good film', ':-)')
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain)) or " ".join(plain.split())


def folded(plain: str) -> str:
    """A normalised text with every digit as 0: codes, dates and amounts do not make two messages different.

    >>> folded("your code is 4711")
    'your code is 0000'
    """
    return re.sub(r"\d", "0", plain)


def text_key(text: str) -> str:
    """Hex SHA-256 of the normalised text: equal for exact duplicates, and safe to show where the text is not."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()


def data_digest(texts: Iterable[LabelledText]) -> str:
    """Hex SHA-256 over every text's key, label, group, data set and pair, in order: which rows, without the rows."""
    seen = hashlib.sha256()
    for text in texts:
        parts = (text.key, str(int(text.label)), text.group, text.dataset, text.pair)
        seen.update("\0".join(parts).encode() + b"\n")
    return seen.hexdigest()
