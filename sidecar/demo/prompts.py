"""What the demo asks: everyday requests of several moods, so that the signals have something to tell apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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


def endless() -> Iterator[str]:
    """The moods in turn, each text again and again: the same order in every run."""
    turns = [itertools.cycle(texts) for texts in (PRAISE, PLAIN, COMPLAINT, OFFER, PLAIN)]
    for turn in itertools.cycle(turns):
        yield next(turn)
