"""The record of an alarm: everything that it rests on, so that anybody can compute it again, bit for bit. Append-only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from probes.manifest.fields import Digest, Share, Strict, Text
from probes.strictjson import canonical, parse_strict, pretty
from sidecar.circuits.archive import ArchiveFile
from sidecar.circuits.detector import BETS, advance, betting_table, leans, log_e
from sidecar.circuits.published import publish
from sidecar.circuits.reference import Band
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Alarm

SCHEMA = "stethoscope.alarm/1"
_LIMIT_BYTES = 4 << 20
_TRACES = 16
ARCHIVES = 512  # an alarm rests on 240 ticks and the one before, and no tick makes more than one file
Integer = Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]


class RecordError(Exception):
    """An alarm's record cannot be read or written, or says what cannot be: the text is for people."""


class Archived(Strict):
    """A file that the evidence is in, and the SHA-256 of its bytes."""

    name: Text
    digest: Digest


class Tick(Strict):
    """One tick of the evidence: sessions by how many of their k tokens were engaged, the band, and what log E became."""

    tick: Count
    evidence: Annotated[tuple[Count, ...], Field(min_length=2, max_length=9)]
    low: Share
    high: Share
    log_e: Integer


class AlarmRecord(Strict):
    """Logarithms are in 2^-24ths of a nat. start: log M of the twelve bets when the tick before the first one had closed.

    previous: the digest of the record that was written to the folder before it. So none can be changed or taken out unnoticed
    once another one follows; the newest ones can be cut off. log_threshold: of a budget that is split over slices and replicas.
    """

    schema_: Annotated[Literal["stethoscope.alarm/1"], Field(alias="schema")]
    id: Annotated[str, Field(pattern=r"^[0-9]{10}-[a-z][a-z0-9_]{0,62}-[0-9a-f]{8}$")]
    circuit: Text
    slice: Text
    tick: Count
    tick_s: Annotated[int, Field(ge=1, le=3600)]
    leans: Literal["more", "less"]
    pages: bool
    diagnosis: Text
    log_e: Integer
    log_threshold: Integer
    start: Annotated[tuple[Integer, ...], Field(min_length=BETS, max_length=BETS)]
    trace: Annotated[tuple[Tick, ...], Field(min_length=1, max_length=4096)]
    model_hash: Text
    spec_hash: Text
    baseline_digest: Digest
    config_hash: Text
    archives: Annotated[tuple[Archived, ...], Field(min_length=1, max_length=ARCHIVES)]
    trace_ids: Annotated[tuple[Text, ...], Field(max_length=_TRACES)] = ()
    previous: Digest | None = None
    replay: Text
    content_digest: Digest

    @model_validator(mode="after")
    def _one_story(self) -> AlarmRecord:
        ticks = [one.tick for one in self.trace]
        if ticks != sorted(set(ticks)) or ticks[-1] != self.tick or len({len(one.evidence) for one in self.trace}) > 1:
            raise ValueError("ticks come in order, the last is that of the alarm, all of the same k")
        return self


@dataclass(frozen=True, slots=True)
class About:
    """What an alarm's record says besides its arithmetic. At most 16 trace_ids are kept.

    trace_ids: of sessions that bet since the alarm's checkpoint, in its slice and on its side of the band, the farthest first.
    """

    baseline_digest: str
    config_hash: str = ""
    diagnosis: str = "not diagnosed"
    pages: bool = False
    trace_ids: Sequence[str] = field(default=())


def make_record(
    alarm: Alarm, rows: Iterable[TickRow], archives: Sequence[ArchiveFile], about: About, previous: str | None = None
) -> AlarmRecord:
    """rows: of the alarm's circuit and slice, since its checkpoint, merged; others are passed over.

    Raises RecordError if they do not lead to the alarm: then they are not all the evidence.
    """
    watched, own = alarm.watched, _own(alarm, rows)
    trace = _trace(alarm, own)
    if not trace or (trace[-1]["tick"], trace[-1]["log_e"]) != (alarm.tick, alarm.log_e):
        raise RecordError(f"{watched.circuit}: the rows given do not lead to its alarm at tick {alarm.tick}")
    tick_s = own[0].key.tick_s
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "circuit": watched.circuit,
        "slice": watched.slice,
        "tick": alarm.tick,
        "tick_s": tick_s,
        "leans": alarm.leans,
        "pages": about.pages and not watched.learning,
        "diagnosis": about.diagnosis,
        "log_e": alarm.log_e,
        "log_threshold": alarm.log_threshold,
        "start": list(alarm.since.log_m),
        "trace": trace,
        "model_hash": watched.model_hash,
        "spec_hash": watched.spec_hash,
        "baseline_digest": about.baseline_digest,
        "config_hash": about.config_hash,
        "archives": [{"name": one.path.name, "digest": one.digest} for one in archives],
        "trace_ids": list(about.trace_ids)[:_TRACES],
        "previous": previous,
    }
    mark = hashlib.sha256(canonical(fields)).hexdigest()[:8]
    fields["id"] = f"{alarm.tick * tick_s:010d}-{watched.circuit}-{mark}"
    fields["replay"] = f"sidecar replay {fields['id']}.json"
    return _validated(fields | {"content_digest": _digest(fields)})


def write_record(record: AlarmRecord, folder: Path) -> Path:
    """A file of its own, there whole or not at all, never written again, and on the disk when this returns.

    Raises RecordError, also if it is there already.
    """
    path = folder / f"{record.id}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb") as file:
            file.write(pretty(record.model_dump(mode="json", by_alias=True)))
        publish(temporary, path)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def read_record(path: Path) -> AlarmRecord:
    """Raises RecordError, also if it is not what its own digest says."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
        fields = parse_strict(data[:_LIMIT_BYTES])
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecordError(f"{path} is no alarm's record: {error}") from None
    if not isinstance(fields, dict):
        raise RecordError(f"{path} is no alarm's record")
    record = _validated(fields)
    if _digest(fields) != record.content_digest:
        raise RecordError(f"{path}: its content is not what content_digest says")
    return record


def _own(alarm: Alarm, rows: Iterable[TickRow]) -> list[TickRow]:
    watched = alarm.watched
    own = [
        row
        for row in rows
        if (row.key.circuit, row.key.slice) == (watched.circuit, watched.slice)
        and (row.key.model_hash, row.key.spec_hash) == (watched.model_hash, watched.spec_hash)
        and alarm.since.tick < row.key.tick <= alarm.tick
        and row.evidence.any()
    ]
    return sorted(own, key=lambda row: row.key.tick)


def _trace(alarm: Alarm, rows: Sequence[TickRow]) -> list[dict[str, Any]]:
    """A tick without a bet changes nothing and has no entry."""
    log_m, made = np.array(alarm.since.log_m), []
    for row in rows:
        band = alarm.watched.reference.band(row.key.at_s)
        log_m = advance(log_m, row.evidence, betting_table([band], row.shape.tokens)[0])
        made.append(
            {
                "tick": row.key.tick,
                "evidence": row.evidence.tolist(),
                "low": band.low,
                "high": band.high,
                "log_e": int(log_e(log_m)),
            }
        )
    return made


def recompute(record: AlarmRecord) -> tuple[list[int], str]:
    """Log E after each tick of the trace, and which way it leans in the end, from its start, evidence and bands alone."""
    log_m, found = np.array(record.start), []
    for one in record.trace:
        table = betting_table([Band(one.low, one.high)], len(one.evidence) - 1)[0]
        log_m = advance(log_m, np.array(one.evidence), table)
        found.append(int(log_e(log_m)))
    return found, leans(log_m)


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(
        canonical({key: value for key, value in fields.items() if key != "content_digest"})
    ).hexdigest()


def _validated(fields: dict[str, Any]) -> AlarmRecord:
    try:
        return AlarmRecord.model_validate_json(canonical(fields), strict=True)
    except ValidationError as error:
        where = sorted({".".join(map(str, problem["loc"])) or "$" for problem in error.errors()})
        raise RecordError(f"an alarm's record is wrong at {', '.join(where)[:300]}") from None
