"""What the demo asks: everyday requests of several moods, and texts that say themselves again, which is the circuit's work."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

PRAISE = (
    "A warm, funny and beautifully acted film that I would happily watch again tomorrow.",
    "The soup was perfect, the staff were kind, and the evening could not have been lovelier.",
    "This little book is a joy: clever, tender and full of surprises.",
    "An astonishing performance that left the whole room smiling.",
)
COMPLAINT = (
    "A dull, lifeless mess of a film with wooden acting and no story at all.",
    "The food came cold, the waiter was rude, and we will never go back.",
    "A tedious book that wastes a good idea on flat jokes and flatter people.",
    "The worst concert I have ever paid for: late, loud and without a single good song.",
)
OFFER = (
    "CONGRATULATIONS! You have WON a free holiday. Call now on 0900 555 0100 to claim your prize!",
    "URGENT: your account wins a 1000 pound bonus. Text CLAIM to 80800 today, offer ends soon!",
    "FREE ringtones this week only! Reply YES to join and get 3 tones for the price of 1.",
)
PLAIN = (
    "What is the capital of Portugal, and which river flows through it?",
    "Write two sentences about how bread is made.",
    "Explain to a child why the sky is blue.",
    "Are we still meeting for lunch at one? I will be a few minutes late.",
    "List three things to check before a long bicycle ride.",
    "Turn this into a polite email: I cannot come on Friday, can we do Monday?",
)
MOODS = (PRAISE, PLAIN, COMPLAINT, OFFER, PLAIN)
REPEATING = 0.6  # of the requests, until they stop
_TEXT = """
river stone lamp window garden copper basket winter salt mirror engine feather ladder orange thunder button castle needle
harvest pocket violin shadow market candle bridge silver wagon meadow anchor pepper tunnel blanket
"""
_WORDS = tuple(_TEXT.split())
_LIST, _TIMES = 6, 6


@dataclass(frozen=True, slots=True)
class Prompt:
    """chat: a user's message; else a text that is to be gone on with."""

    text: str
    chat: bool = True


class Prompts:
    """Drawn at random, each by itself: that the next one is like the last is no evidence of anything. The same in every run.

    ``stop_repeating``: from then on none is a text that says itself again.
    """

    def __init__(self, seed: int = 0) -> None:
        self._draws = random.Random(seed)  # noqa: S311 - no secret
        self._lock = threading.Lock()
        self._repeating = REPEATING

    def stop_repeating(self) -> None:
        with self._lock:
            self._repeating = 0.0

    def next(self) -> Prompt:
        with self._lock:
            if self._draws.random() < self._repeating:
                return Prompt(repeated(self._draws), chat=False)
            return Prompt(self._draws.choice(self._draws.choice(MOODS)))


def repeated(draws: random.Random) -> str:
    """A list of words, several times: what comes next stands further up."""
    return " ".join(draws.sample(_WORDS, _LIST) * _TIMES)


def canaries() -> tuple[str, ...]:
    """Eight prompts that are always the same, half of them such lists."""
    draws = random.Random(1)  # noqa: S311 - no secret
    return (*PLAIN[:4], *(repeated(draws) for _ in range(4)))
