"""The nouns that every stage shares. Numpy only; nothing here knows grpc, torch or Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NewType, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
PositionArray: TypeAlias = npt.NDArray[np.uint32]
IndexArray: TypeAlias = npt.NDArray[np.intp]

BatchId = NewType("BatchId", str)
EngineId = NewType("EngineId", str)
RequestId = NewType("RequestId", str)


class Site(StrEnum):
    """Which stream of a transformer block a tap point reads."""

    RESID_POST = "resid_post"
    ATTN_HEADS = "attn_heads"
    MLP_OUT = "mlp_out"


class Stack(StrEnum):
    """Which blocks of a model: a decoder's, which a model with one stack has, or those of an encoder-decoder's encoder."""

    DECODER = "decoder"
    ENCODER = "encoder"


_TAP_POINT = re.compile(r"(encoder\.)?blocks\.(0|[1-9][0-9]{0,4})\.([a-z_]+)")


@dataclass(frozen=True, slots=True, order=True)
class TapPoint:
    """A place inside a model whose states can be read; its name is the only form that people and labels see.

    >>> TapPoint(14).name
    'blocks.14.resid_post'
    >>> TapPoint.parse("blocks.3.mlp_out")
    TapPoint(layer=3, site=<Site.MLP_OUT: 'mlp_out'>, stack=<Stack.DECODER: 'decoder'>)
    >>> TapPoint.parse("encoder.blocks.3.mlp_out").stack
    <Stack.ENCODER: 'encoder'>
    """

    layer: int
    site: Site = Site.RESID_POST
    stack: Stack = Stack.DECODER

    def __hash__(self) -> int:
        return self.layer  # asked for by the engine's thread, for every tap point of every step: few share a layer

    @property
    def name(self) -> str:
        blocks = f"blocks.{self.layer}.{self.site.value}"
        return blocks if self.stack is Stack.DECODER else f"{self.stack.value}.{blocks}"

    @classmethod
    def parse(cls, name: str) -> TapPoint:
        """Raises ValueError if the name is not of the form ``blocks.<layer>.<site>``, or that with ``encoder.`` before it."""
        match = _TAP_POINT.fullmatch(name)
        if match is None or match[3] not in list(Site):
            raise ValueError(f"not a tap point: {name!r}; want for example 'blocks.14.resid_post'")
        return cls(int(match[2]), Site(match[3]), Stack.ENCODER if match[1] else Stack.DECODER)


class Phase(IntEnum):
    """What the engine was doing when it computed a row. Values are those of the wire."""

    PREFILL = 1
    DECODE = 2
    ENCODER = 3
    TIMESTEP = 4


class UnseenReason(StrEnum):
    """Why a token has no row. The order is that of the wire, from 1."""

    PREFIX_CACHE = "prefix_cache"
    SAMPLING = "sampling"
    TAP_DROPPED = "tap_dropped"
    GRAPH_REPLAY = "graph_replay"
    UNSUPPORTED = "unsupported"


class Evidence(StrEnum):
    """What has been shown about a signal; carried beside its value everywhere."""

    UNVERIFIED = "unverified"
    DECODABLE = "decodable"
    USED = "used"
    STALE = "stale"


class Action(StrEnum):
    """What the sidecar advises to do with a request, the weakest first: of several the strongest holds.

    Block is stronger than escalate: whoever has one signal block has said that it needs no second opinion, and a stronger
    judge, asked because of another signal, could let the request through.
    """

    ALLOW = "allow"
    FLAG = "flag"
    ESCALATE = "escalate"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model, exactly. Digests are hex SHA-256; an empty string means "not known"."""

    name: str
    architecture: str
    layers: int
    width: int
    weights_digest: str = ""
    tokenizer_digest: str = ""
    dtype: str = ""
    quantisation: str = "none"
    engine: str = ""
    engine_version: str = ""
    encoder_layers: int = 0  # blocks of its encoder; 0 if it has none beside its decoder

    def has(self, where: TapPoint) -> bool:
        """Whether it has such a block."""
        return where.layer < (self.layers if where.stack is Stack.DECODER else self.encoder_layers)


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A valid W3C trace context: hex ids and the sampled flag."""

    trace_id: str
    span_id: str
    sampled: bool


class Medium(StrEnum):
    """What else than text stands in a sequence. The order is that of the wire, from 1."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """Positions ``position .. position + tokens - 1`` of a request hold a piece of another medium than text."""

    medium: Medium
    position: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Segments:
    """Who owns which rows, by column: segment g is the rows ``starts[g]`` up to the next start, of one request.

    A column of facts is empty or has one entry per segment. Headers are as they came: whoever needs a trace parses it.
    """

    request_ids: tuple[RequestId, ...]  # [G], distinct
    starts: IndexArray  # [G], strictly increasing, starts[0] == 0
    rows: IndexArray  # [G], at least 1
    positions: PositionArray  # [T], strictly increasing within a segment
    phases: npt.NDArray[np.int8]  # [G], values of Phase
    prompt_tokens: IndexArray  # [G], 0 if not known
    unseen_tokens: Mapping[int, int] = field(default_factory=dict)  # by segment
    traceparents: tuple[str, ...] = ()
    tracestates: tuple[str, ...] = ()
    session_id_hashes: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    canaries: tuple[bool, ...] = ()
    adapters: tuple[str, ...] = ()
    media: Mapping[int, tuple[MediaSpan, ...]] = field(default_factory=dict)  # by segment

    def __len__(self) -> int:
        return len(self.request_ids)

    @property
    def token_count(self) -> int:
        return len(self.positions)

    def media_rows(self, segment: int) -> dict[Medium, int]:
        """How many rows of a segment stand in pieces of each medium."""
        start = int(self.starts[segment])
        positions = self.positions[start : start + int(self.rows[segment])]
        found: dict[Medium, int] = {}
        for span in self.media.get(segment, ()):
            first, end = np.searchsorted(positions, (span.position, span.position + span.tokens)).tolist()
            found[span.medium] = found.get(span.medium, 0) + end - first
        return found


class ElementType(StrEnum):
    """Element type of a tensor on the wire. The order is that of the wire, from 1."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def storage(self) -> np.dtype[Any]:
        """How numpy holds the little-endian bytes: bfloat16 has no type of its own there and stays uint16."""
        return _STORAGE[self.value]


_STORAGE: Mapping[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype("<u2")}


@dataclass(frozen=True, slots=True)
class RowSample:
    """The hidden states of some rows of a projected tensor: from them its readings are checked."""

    rows: IndexArray  # [R], increasing, each below the batch's number of rows
    dtype: ElementType
    values: npt.NDArray[Any]  # [R, D], in ``dtype.storage``


@dataclass(frozen=True, slots=True)
class TapTensor:
    """All rows of a batch at one tap point.

    values: [T, D] hidden states, or, if projected, [T, K + 1] readings with the squared norm last, in ``dtype.storage``.
    The array is a read-only view of the message's bytes; it is dropped when the step ends.
    """

    tap_point: TapPoint
    dtype: ElementType
    values: npt.NDArray[Any]
    projected: bool = False
    sample: RowSample | None = None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Everything captured in one forward pass of the engine, or a few in a row, decoded and structurally sound."""

    batch_id: BatchId
    engine_id: EngineId
    taken_ns: int
    plan_generation: int
    step: int
    segments: Segments
    tensors: tuple[TapTensor, ...]
    finished: tuple[RequestId, ...] = ()
    verdict_within_s: float = 0.0  # somebody waits for so long for what is said of every request; 0: nobody

    @property
    def row_count(self) -> int:
        """Rows of all tap points: one row is one token at one tap point."""
        return self.segments.token_count * len(self.tensors)


@dataclass(frozen=True, slots=True)
class TapLedgerCounts:
    """What a tap knows of the batches it made: sent = ok + refused + unknown; dropped ones were never sent."""

    sent: int = 0
    ok: int = 0
    refused: int = 0
    unknown: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """What an engine computed since it started, told by its scheduler. All counts only grow."""

    engine_id: EngineId
    step: int
    tokens_computed: int
    unseen: tuple[tuple[UnseenReason, int], ...]
    requests: int
    tap: TapLedgerCounts
    encoder_computed: int = 0  # of tokens_computed, those of an encoder
    encoder_left_out: int = 0  # of those, left out by sampling

    def expected(self, stack: Stack) -> int:
        """How many rows every tap point of the stack must have given by now, if none was lost."""
        encoder = self.encoder_computed - self.encoder_left_out
        if stack is Stack.ENCODER:
            return encoder
        return self.tokens_computed - dict(self.unseen).get(UnseenReason.SAMPLING, 0) - encoder


class Mode(StrEnum):
    """What taps send: hidden states, or what is left of them after the product with the plan."""

    RAW = "raw"
    PROJECTED = "projected"


@dataclass(frozen=True, slots=True)
class SamplingPolicy:
    """Which requests and tokens a tap captures; see the message of the same name in ingest.proto."""

    request_fraction: float = 0.1
    token_stride: int = 1
    first_tokens: int = 0
    last_tokens: int = 0
