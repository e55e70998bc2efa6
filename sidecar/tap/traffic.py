"""What the engine computed, told by its scheduler. Knows nothing of the hooks that capture states."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sidecar.types import Stack, UnseenReason


@dataclass(slots=True)
class StepTally:
    """One step's counts, while the step runs."""

    tokens: int = 0
    requests: int = 0
    unseen: dict[UnseenReason, int] = field(default_factory=dict)
    stack: Stack = Stack.DECODER  # whose step it is

    def miss(self, reason: UnseenReason, tokens: int) -> None:
        self.unseen[reason] = self.unseen.get(reason, 0) + tokens


@dataclass(frozen=True, slots=True)
class TrafficCounts:
    """Counts since the tap was made; they only grow."""

    step: int = 0
    tokens_computed: int = 0
    requests: int = 0
    unseen: tuple[tuple[UnseenReason, int], ...] = ()
    encoder_computed: int = 0  # of tokens_computed
    encoder_left_out: int = 0  # of those, by sampling


class TrafficMeter:
    """Adds up steps. Thread-safe: engine threads add, the sender reads.

    A step is added after its batch was handed to the client, so a report never runs ahead of the batches that it counts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._step = self._tokens = self._requests = 0
        self._encoder_tokens = self._encoder_left_out = 0
        self._unseen = dict.fromkeys(UnseenReason, 0)

    def add(self, tally: StepTally) -> None:
        with self._lock:
            self._step += 1
            self._tokens += tally.tokens
            self._requests += tally.requests
            for reason, tokens in tally.unseen.items():
                self._unseen[reason] += tokens
            if tally.stack is Stack.ENCODER:
                self._encoder_tokens += tally.tokens
                self._encoder_left_out += tally.unseen.get(UnseenReason.SAMPLING, 0)

    def miss(self, reason: UnseenReason, tokens: int) -> None:
        """Tokens of an earlier step that turned out to be lost."""
        with self._lock:
            self._unseen[reason] += tokens

    def counts(self) -> TrafficCounts:
        with self._lock:
            unseen = tuple((reason, tokens) for reason, tokens in self._unseen.items() if tokens)
            encoder = (self._encoder_tokens, self._encoder_left_out)
            return TrafficCounts(self._step, self._tokens, self._requests, unseen, *encoder)
