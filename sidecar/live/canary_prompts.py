"""The prompts of canaries: fixed, so that whatever moves is not the traffic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sidecar.errors import ConfigError

LEAST, MOST = 8, 128
_LONGEST = 4096  # characters
_WORDS = [
    "river",
    "stone",
    "lamp",
    "window",
    "garden",
    "copper",
    "basket",
    "winter",
    "salt",
    "mirror",
    "engine",
    "feather",
    "ladder",
    "orange",
    "thunder",
    "button",
    "castle",
    "needle",
    "harvest",
    "pocket",
    "violin",
    "shadow",
    "market",
    "candle",
    "bridge",
    "silver",
    "wagon",
    "meadow",
    "anchor",
    "pepper",
    "tunnel",
    "blanket",
]
_PLAIN = (
    "The capital of Portugal is Lisbon, and the river that flows through it is the",
    "Bread is made of flour, water, salt and yeast. First the flour is",
    "Three things to check before a long ride are the brakes, the tyres and the",
    "On Monday it rained, on Tuesday it rained, and on Wednesday it",
    "If all the lights are out, then somebody has forgotten to",
    "def add(a, b):\n    return a +",
    "1, 2, 4, 8, 16, 32,",
    "The letter began: Dear Sir or Madam, I am writing to",
    "She put the key into the lock, turned it, and the door",
    "Water boils at one hundred degrees and freezes at",
    "He had three apples, ate one, and so he has",
    "The opposite of hot is cold, and the opposite of dark is",
    "My favourite colour is blue, because it reminds me of the",
    "In the year 1969 the first man walked on the",
    "To be or not to be, that is the",
    "The cat sat on the mat and the dog lay on the",
)


def prompts_of(path: Path | None) -> tuple[str, ...]:
    """The file's lines that are not empty, or our own. Raises ConfigError for fewer than 8 or more than 128."""
    if path is None:
        return own()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"canary.prompts: it cannot be read: {type(error).__name__}"]) from None
    found = tuple(line for line in lines if line.strip())
    if not LEAST <= len(found) <= MOST or max(map(len, found)) > _LONGEST:
        raise ConfigError([f"canary.prompts: want {LEAST} to {MOST} lines of at most {_LONGEST} characters"])
    return found


def own() -> tuple[str, ...]:
    """Sixteen plain beginnings, and sixteen that repeat themselves: what comes next stands further up.

    >>> len(own()), own()[16][:60]
    (32, 'river window basket mirror ladder button harvest shadow brid')
    """
    return (*_PLAIN, *(_repeating(number) for number in range(16)))


def _repeating(number: int) -> str:
    """Twelve words, and the first few of them again."""
    step = 3 + 2 * number
    words = [_WORDS[(number + at * step) % len(_WORDS)] for at in range(12)]
    return " ".join((*words, *words[: 4 + number % 4]))


def digest_of(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()
