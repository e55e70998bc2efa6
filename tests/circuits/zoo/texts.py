"""What sessions say: token ids of plain texts, of texts that repeat themselves, and of a language that no circuit was made on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from probes.activations.model import LabModel
from probes.answers import answered
from probes.circuits.behaviours import made_pairs
from probes.circuits.toy import FIRST, WORDS
from probes.prompts import EVERYDAY

PLAIN, REPEATING, FOREIGN = KINDS = ("plain", "repeating", "foreign")
Texts = dict[str, list[list[int]]]
Ids = list[list[int]]

NATIVE, _OTHER = range(2, 42), range(42, WORDS)  # words of the toy's two languages
_ANSWER_TOKENS = 32
_LONGEST = 80
# Finnish: long words with many endings, of which the everyday chats have none.
_SUBJECTS = (
    "Vanha kalastaja",
    "Naapurin tyttö",
    "Kylän opettaja",
    "Väsynyt lääkäri",
    "Pieni poika",
    "Kirjaston hoitaja",
)
_VERBS = ("odotti pitkään", "muisteli hiljaa", "rakensi uudestaan", "etsi turhaan", "lupasi korjata", "maalasi yksin")
_OBJECTS = (
    "punaista venettä",
    "kadonnutta avainta",
    "isoäidin keittokirjaa",
    "rikkinäistä kelloa",
    "kesämökin ikkunaa",
)
_WHERE = ("järven rannalla", "lumisessa metsässä", "rautatieaseman takana", "keskiyön jälkeen", "sateisena aamuna")


def toy_texts(many: int, draws: np.random.Generator) -> Texts:
    """Of so many words that the toy knows: 40 are one language, and the other 22 another one."""
    return {
        PLAIN: [[0, *_words(draws, NATIVE)[:-1]] for _ in range(many)],
        REPEATING: [[0, *_words(draws, NATIVE)[:FIRST] * 3] for _ in range(many)],
        FOREIGN: [
            [0, *(_words(draws, _OTHER)[: len(_OTHER) // 2] * 3 if at % 2 else _words(draws, _OTHER))]
            for at in range(many)
        ],
    }


def toy_pairs(many: int, draws: np.random.Generator) -> list[dict[str, list[int]]]:
    """Contrast pairs in the first language, as `probes.circuits.toy` makes them of all words."""
    return [_pair(draws) for _ in range(many)]


def toy_canaries(draws: np.random.Generator) -> tuple[list[str], Ids]:
    """Eight prompts, every other one of which repeats itself."""
    told = [_words(draws, NATIVE)[:FIRST] * 3 if at % 2 else _words(draws, NATIVE)[:-1] for at in range(8)]
    return [" ".join(f"w{word}" for word in one) for one in told], [[0, *one] for one in told]


def english_texts(lab: LabModel, many: int, draws: np.random.Generator) -> Texts:
    """Everyday chats, answered by the model; random words that come again; and Finnish."""
    with Progress(disable=True) as bars:
        chats = [chat[:_LONGEST] for chat in answered(lab, EVERYDAY[:many], _ANSWER_TOKENS, bars)]
    pairs = made_pairs("induction", lab, many, int(draws.integers(10_000, 900_000)))
    return {
        PLAIN: chats,
        REPEATING: [[*pair.clean, *pair.clean[1:]][:_LONGEST] for pair in pairs],
        FOREIGN: [_encoded(lab, " ".join(_told(draws, again=bool(at % 2)))) for at in range(many)],
    }


def english_canaries(lab: LabModel, prompts: Sequence[str]) -> Ids:
    """As an engine makes token ids of them for plain completion."""
    return [_encoded(lab, one) for one in prompts]


def _encoded(lab: LabModel, text: str) -> list[int]:
    tokenizer: Any = lab.tokenizer
    return list(tokenizer.encode(text))[:_LONGEST]


def _told(draws: np.random.Generator, *, again: bool) -> list[str]:
    return [_finnish(draws)] * 3 if again else [_finnish(draws) for _ in range(3)]


def _finnish(draws: np.random.Generator) -> str:
    return " ".join(str(draws.choice(part)) for part in (_SUBJECTS, _VERBS, _OBJECTS, _WHERE)) + "."


def _words(draws: np.random.Generator, language: range) -> list[int]:
    """All of them, each once."""
    return [int(word) for word in draws.permutation(np.array(language))]


def _pair(draws: np.random.Generator) -> dict[str, list[int]]:
    first = _words(draws, NATIVE)[:FIRST]
    asked, other = (int(place) for place in draws.choice(np.arange(FIRST // 2) * 2, 2, replace=False))
    swapped = list(first)
    swapped[asked], swapped[other] = first[other], first[asked]
    again = [first[asked]]
    return {
        "clean": [0, *first, *again],
        "corrupt": [0, *swapped, *again],
        "answer": [first[asked + 1]],
        "wrong": [first[other + 1]],
    }
