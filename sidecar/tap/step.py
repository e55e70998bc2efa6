"""What one engine step leaves behind for the sender: whose rows, and their states. Knows no engine and no tensor library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.types import ElementType, Phase, TapPoint, UnseenReason

_ID = re.compile(r"[A-Za-z0-9._:/@#+=~-]{1,256}")


class States(Protocol):
    """Rows of hidden states [T, D] that the tap owns: nobody writes to them any more."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int: ...

    def part(self, start: int, stop: int) -> States:
        """Rows ``start:stop``, as a view."""
        ...

    def encode(self) -> tuple[ElementType, bytes]:
        """Little-endian, row-major bytes. Called on the sender's thread; may wait for the device."""
        ...


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
    carried: dict[UnseenReason, int] = field(default_factory=dict)  # unseen since its last segment

    def carry(self, reason: UnseenReason, tokens: int) -> None:
        self.carried[reason] = self.carried.get(reason, 0) + tokens


@dataclass(frozen=True, slots=True)
class StepSegment:
    """The captured rows of one request in one step."""

    info: RequestInfo
    wire_id: str
    positions: Sequence[int]
    phase: Phase
    prompt_tokens: int
    unseen: tuple[tuple[UnseenReason, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """One engine step. Rows of every tensor are those of the segments, in order. A tap point that did not fire is absent."""

    taken_ns: int
    step: int
    segments: tuple[StepSegment, ...]
    tensors: tuple[tuple[TapPoint, States], ...]
    tokens: int
    nbytes: int
