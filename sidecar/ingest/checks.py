"""What texts from outside may look like. Whole columns are checked at once; only a refusal looks at single entries."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from sidecar.errors import Rejected, RejectReason

M = TypeVar("M", bound=Message)

BATCH_ID_CHARS, ENGINE_ID_CHARS, REQUEST_ID_CHARS, LABEL_CHARS, FACT_CHARS = 64, 128, 256, 128, 200
_ALPHABET = (string.ascii_letters + string.digits + "._:/@#+=~-").encode()  # ingest.proto says so
_ID = re.compile("[A-Za-z0-9._:/@#+=~-]+")
_FACT = re.compile("[A-Za-z0-9._:/@#+=~ -]*")
_DIGEST = re.compile("(?:[0-9a-f]{64})?")


def parse(make: Callable[[], M], raw: bytes | memoryview) -> M:
    """Raises Rejected(malformed, "$") if the bytes are no such message. Unknown fields are ignored."""
    message = make()
    try:
        message.ParseFromString(raw)  # type: ignore[arg-type]  # any buffer, whatever the stubs say
    except (DecodeError, UnicodeDecodeError, ValueError):
        raise Rejected(RejectReason.MALFORMED, "$") from None
    return message


def check_id(value: str, limit: int, field: str) -> str:
    """Raises Rejected if the id is empty, too long, or has a character that an id cannot have."""
    if not value:
        raise Rejected(RejectReason.MISSING, field)
    if len(value) > limit or _ID.fullmatch(value) is None:
        raise Rejected(RejectReason.BAD_TEXT, field)
    return value


def check_ids(values: Sequence[str], field: str) -> None:
    """Raises Rejected naming the first entry that is no request id."""
    if _all_sound(values, 1, REQUEST_ID_CHARS):
        return
    for i, value in enumerate(values):
        check_id(value, REQUEST_ID_CHARS, f"{field}[{i}]")


def check_labels(values: Sequence[str], field: str) -> None:
    """Like ``check_ids``, but an entry may be empty, and is shorter."""
    if _all_sound(values, 0, LABEL_CHARS):
        return
    for i, value in enumerate(values):
        if value:
            check_id(value, LABEL_CHARS, f"{field}[{i}]")


def _all_sound(values: Sequence[str], least: int, most: int) -> bool:
    """Whether every length is within [least, most] and every character within the alphabet; 2 ns a character."""
    if not values:
        return True
    lengths = [len(value) for value in values]
    if min(lengths) < least or max(lengths) > most:
        return False
    joined = "".join(values)
    return joined.isascii() and not joined.encode().translate(None, _ALPHABET)


def check_fact(value: str, field: str) -> str:
    """A text that an engine says of its model: may be empty, may have spaces."""
    if len(value) > FACT_CHARS or _FACT.fullmatch(value) is None:
        raise Rejected(RejectReason.BAD_TEXT, field)
    return value


def check_digest(value: str, field: str) -> str:
    """A hex SHA-256, or empty."""
    if _DIGEST.fullmatch(value) is None:
        raise Rejected(RejectReason.BAD_TEXT, field)
    return value
