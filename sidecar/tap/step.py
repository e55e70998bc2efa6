"""What one engine step leaves behind for the sender: whose rows, and their states. Knows no engine and no tensor library."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sidecar.types import ElementType, IndexArray, MediaSpan, Phase, TapPoint, UnseenReason

_ID = re.compile(r"[A-Za-z0-9._:/@#+=~-]{1,256}")


class States(Protocol):
    """Rows that the tap owns and nobody writes to any more: hidden states [T, D], or the plan's readings of them [T, K + 1]."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> ElementType:
        """Of the bytes that ``write`` makes. Costs nothing."""
        ...

    @property
    def projected(self) -> bool:
        """Readings without offsets and the squared norm, instead of hidden states."""
        ...

    @property
    def sample(self) -> Sample | None:
        """For readings: the hidden states of some of the rows, by which the sidecar checks them."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory that they keep until they are written: readings that are still to be made keep the rows they are made of."""
        ...

    def part(self, start: int, stop: int) -> States:
        """Rows ``start:stop``, as a view, with their share of the sample (``Sample.part``)."""
        ...

    def joined(self, others: Sequence[States], order: IndexArray) -> States:
        """These rows and, behind them, those of others of the same kind, in another order: row i is what was row ``order[i]``.

        Their samples go along. On the sender's thread.
        """
        ...

    def write(self, into: memoryview) -> None:
        """Little-endian, row-major; ``into`` has exactly ``payload_bytes``. On the sender's thread; may wait for the device."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """Hidden states of a few rows of a projected tensor; ``rows`` increase and count in that tensor."""

    rows: tuple[int, ...]
    states: States  # raw, one row for each of ``rows``

    def part(self, start: int, stop: int) -> Sample | None:
        """What of it lies in ``start:stop``, counted from there. None if nothing does."""
        first, end = bisect_left(self.rows, start), bisect_left(self.rows, stop)
        if first == end:
            return None
        return Sample(tuple(row - start for row in self.rows[first:end]), self.states.part(first, end))


def payload_bytes(states: States) -> int:
    """Size of what ``write`` makes: rows x columns elements."""
    rows, columns = states.shape
    return rows * columns * states.dtype.storage.itemsize


def wire_bytes(states: States) -> int:
    """Size on the wire, with the sample."""
    return payload_bytes(states) + (payload_bytes(states.sample.states) if states.sample is not None else 0)


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What is known of a request besides its tokens. Nothing here is checked; what cannot go on the wire is replaced there."""

    request_id: str
    traceparent: str = ""
    route: str = ""
    tenant: str = ""
    language: str = ""
    session_id_hash: str = ""
    canary: bool = False
    adapter: str = ""  # a LoRA that is applied: these are states of another model than the one that is named


def wire_id(text: str) -> str:
    """The id as the sidecar accepts it; one that it would refuse becomes a hash, so that it cannot cost its neighbours their rows.

    >>> wire_id("chatcmpl-17"), wire_id("two words")
    ('chatcmpl-17', 'hashed:0a74d9f8dc440af6bd63bbaf0c17cc5d')
    """
    if _ID.fullmatch(text) is not None:
        return text
    return f"hashed:{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


@dataclass(slots=True, eq=False)
class Request:
    """One request as the tap follows it. Owned by the engine's thread."""

    info: RequestInfo
    wire_id: str
    chosen: bool
    prompt_tokens: int
    next_position: int = 0
    last_step: int = -1
    captured: bool = False
    ended: bool = False
    lost: bool = False  # the engine no longer tells at which positions its rows are: they are counted, not captured
    gap: UnseenReason = UnseenReason.PREFIX_CACHE  # why positions are passed over
    carried: dict[UnseenReason, int] = field(default_factory=dict)  # unseen since its last segment
    media: list[MediaSpan] = field(default_factory=list)  # in its sequence, as far as it is known; by position

    def carry(self, reason: UnseenReason, tokens: int) -> None:
        self.carried[reason] = self.carried.get(reason, 0) + tokens

    def decodes(self, step: int) -> bool:
        """Whether its next row is one generated token of which nothing else is to be said, and its first in this step."""
        return (
            self.captured
            and self.next_position >= self.prompt_tokens
            and self.last_step != step
            and not self.carried
            and not self.lost
        )

    def pass_on(self) -> None:
        """Its encoder has run: the decoder counts positions anew."""
        self.next_position = self.prompt_tokens = 0


class StepSegment(NamedTuple):
    """The captured rows of one request in one step. A tuple: made for every request of every step, on the engine's thread."""

    info: RequestInfo
    wire_id: str
    positions: Sequence[int]
    phase: Phase
    prompt_tokens: int
    unseen: tuple[tuple[UnseenReason, int], ...] = ()
    media: tuple[MediaSpan, ...] = ()

    def media_here(self) -> Iterator[MediaSpan]:
        """Those that hold one of the segment's positions."""
        for span in self.media:
            place = bisect_left(self.positions, span.position)
            if place < len(self.positions) and self.positions[place] < span.position + span.tokens:
                yield span


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """One engine step, or several joined. Rows of every tensor are those of the segments, in order.

    A tap point that did not fire is absent.

    All projected tensors of a step were multiplied by the same plan: that of ``plan_generation``.
    """

    taken_ns: int
    step: int
    segments: tuple[StepSegment, ...]
    tensors: tuple[tuple[TapPoint, States], ...]
    tokens: int
    plan_generation: int = 0  # 0: nothing is projected

    @property
    def nbytes(self) -> int:
        """Of all tensors on the wire, with their samples."""
        return sum([wire_bytes(states) for _, states in self.tensors])

    @property
    def held_bytes(self) -> int:
        """Of memory, until it is sent."""
        return sum([states.held_bytes for _, states in self.tensors])
