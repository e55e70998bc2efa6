"""The table of segments, column by column: no loop over the requests of a step unless something is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from protos.stethoscope.v1 import ingest_pb2
from sidecar.config import Limits
from sidecar.errors import Rejected, RejectReason
from sidecar.ingest.checks import check_ids, check_labels
from sidecar.types import (
    BoolArray,
    IndexArray,
    MediaSpan,
    Medium,
    Phase,
    PositionArray,
    RequestId,
    Segments,
    UnseenReason,
)

_PATH = "step_batch.segments"
_LABELS = ("session_id_hashes", "tenants", "routes", "languages", "adapters")
_MAX_TOKENS = (1 << 32) - 1  # a position has 32 bits: no request has more tokens
_MEDIA = dict(enumerate(Medium, 1))
_OPTIONAL = ("prompt_tokens", "traceparents", "tracestates", *_LABELS, "canaries")


def decode_segments(wire: ingest_pb2.Segments, limits: Limits) -> Segments:
    """Raises Rejected with the path of the column, and of the entry where one is wrong."""
    count = len(wire.request_ids)
    _check_lengths(wire, count, limits)
    request_ids = tuple(wire.request_ids)
    check_ids(request_ids, f"{_PATH}.request_ids")
    if len(set(request_ids)) != count:
        raise Rejected(RejectReason.BAD_SHAPE, f"{_PATH}.request_ids[{_first_repeated(request_ids)}]")
    for name in _LABELS:
        check_labels(getattr(wire, name), f"{_PATH}.{name}")
    rows = _rows(wire, limits)
    starts = np.cumsum(rows) - rows
    return Segments(
        request_ids=cast("tuple[RequestId, ...]", request_ids),
        starts=starts,
        rows=rows,
        positions=_positions(wire, starts, int(rows.sum())),
        phases=_phases(wire),
        prompt_tokens=np.array(list(wire.prompt_tokens) or [0] * count, dtype=np.intp),
        unseen_tokens=_unseen(wire, count),
        traceparents=tuple(wire.traceparents),
        tracestates=tuple(wire.tracestates),
        session_id_hashes=tuple(wire.session_id_hashes),
        tenants=tuple(wire.tenants),
        routes=tuple(wire.routes),
        languages=tuple(wire.languages),
        canaries=tuple(wire.canaries),
        adapters=tuple(wire.adapters),
        media=_media(wire, count),
    )


def _check_lengths(wire: ingest_pb2.Segments, count: int, limits: Limits) -> None:
    """Before anything is copied: how long each column says it is."""
    if count == 0:
        raise Rejected(RejectReason.MISSING, f"{_PATH}.request_ids")
    if count > limits.segments:
        raise Rejected(RejectReason.TOO_MANY, f"{_PATH}.request_ids")
    if len(wire.positions) > limits.rows:
        raise Rejected(RejectReason.TOO_MANY, f"{_PATH}.positions")
    if len(wire.unseen) > count * len(UnseenReason):
        raise Rejected(RejectReason.TOO_MANY, f"{_PATH}.unseen")
    if len(wire.media) > len(wire.positions):  # each labels a row at least
        raise Rejected(RejectReason.TOO_MANY, f"{_PATH}.media")
    for name in ("rows", "phases", *_OPTIONAL):
        length = len(getattr(wire, name))
        if length != count and (length or name in ("rows", "phases")):
            raise Rejected(RejectReason.BAD_SHAPE, f"{_PATH}.{name}")


def _rows(wire: ingest_pb2.Segments, limits: Limits) -> IndexArray:
    rows = np.array(list(wire.rows), dtype=np.intp)
    if not rows.all():
        raise Rejected(RejectReason.BAD_SHAPE, f"{_PATH}.rows[{_first(rows == 0)}]")
    if int(rows.sum()) > limits.rows:
        raise Rejected(RejectReason.TOO_MANY, f"{_PATH}.rows")
    return rows


def _positions(wire: ingest_pb2.Segments, starts: IndexArray, total: int) -> PositionArray:
    positions = np.array(list(wire.positions), dtype=np.uint32)
    if len(positions) != total:
        raise Rejected(RejectReason.BAD_SHAPE, f"{_PATH}.positions")
    falls = positions[1:] <= positions[:-1]
    falls[starts[1:] - 1] = False  # from one request to the next, any step is right
    if falls.any():
        raise Rejected(RejectReason.BAD_POSITIONS, f"{_PATH}.positions[{_first(falls) + 1}]")
    return positions


def _phases(wire: ingest_pb2.Segments) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    phases = np.array(list(wire.phases), dtype=np.int64)
    wrong = (phases < min(Phase)) | (phases > max(Phase))
    if wrong.any():
        raise Rejected(RejectReason.BAD_ENUM, f"{_PATH}.phases[{_first(wrong)}]")
    return phases.astype(np.int8)


def _unseen(wire: ingest_pb2.Segments, count: int) -> dict[int, int]:
    tokens: dict[int, int] = {}
    for i, entry in enumerate(wire.unseen):
        if entry.segment >= count:
            raise Rejected(RejectReason.BAD_SHAPE, f"{_PATH}.unseen[{i}].segment")
        if not 1 <= entry.reason <= len(UnseenReason):
            raise Rejected(RejectReason.BAD_ENUM, f"{_PATH}.unseen[{i}].reason")
        if entry.tokens > _MAX_TOKENS:
            raise Rejected(RejectReason.BAD_COUNT, f"{_PATH}.unseen[{i}].tokens")
        tokens[entry.segment] = tokens.get(entry.segment, 0) + entry.tokens
    return tokens


def _media(wire: ingest_pb2.Segments, count: int) -> dict[int, tuple[MediaSpan, ...]]:
    spans: dict[int, list[MediaSpan]] = {}
    for i, entry in enumerate(wire.media):
        if entry.segment >= count:
            raise Rejected(RejectReason.BAD_SHAPE, f"{_PATH}.media[{i}].segment")
        medium = _MEDIA.get(entry.medium)
        if medium is None:
            raise Rejected(RejectReason.BAD_ENUM, f"{_PATH}.media[{i}].medium")
        if not 0 < entry.tokens <= _MAX_TOKENS - entry.position:
            raise Rejected(RejectReason.BAD_COUNT, f"{_PATH}.media[{i}].tokens")
        spans.setdefault(entry.segment, []).append(MediaSpan(medium, entry.position, entry.tokens))
    return {segment: tuple(found) for segment, found in spans.items()}


def _first(mask: BoolArray) -> int:
    return int(np.argmax(mask))


def _first_repeated(values: Sequence[str]) -> int:
    seen: set[str] = set()
    for i, value in enumerate(values):
        if value in seen:
            return i
        seen.add(value)
    raise AssertionError("called only when one repeats")
