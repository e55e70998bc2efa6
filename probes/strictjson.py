"""JSON that means one thing only: no duplicate keys, no NaN, no unbounded nesting, no text that cannot be shown."""

from __future__ import annotations

import json
import math
from typing import Any

from sidecar.errors import ArtifactError, ArtifactReason


class StrictJsonError(ValueError):
    """The bytes are not JSON with one meaning. The text names the fault and quotes nothing of the input."""


class DuplicateKeyError(StrictJsonError):
    """An object names a key twice: readers would disagree about which one counts."""


def parse_strict(data: bytes) -> Any:
    """Parse UTF-8 JSON. Raises DuplicateKeyError or StrictJsonError.

    >>> parse_strict(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_strict(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    probes.strictjson.DuplicateKeyError: a key twice in one object
    """
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except StrictJsonError:
        raise
    except RecursionError:
        raise StrictJsonError("nested too deeply") from None
    except ValueError:
        raise StrictJsonError("it cannot be parsed") from None


def strict_object(data: bytes, what: str, reason: ArtifactReason) -> dict[str, Any]:
    """Parse the JSON object that ``what`` of an artifact is. Raises ArtifactError: DUPLICATE_KEY, or ``reason`` for all else."""
    try:
        fields = parse_strict(data)
    except DuplicateKeyError as error:
        raise ArtifactError(ArtifactReason.DUPLICATE_KEY, f"{what} has {error}") from None
    except StrictJsonError as error:
        raise ArtifactError(reason, f"{what} is not sound JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ArtifactError(reason, f"{what} is not an object")
    return fields


def canonical(value: Any) -> bytes:
    """Serialise in the one form that digests are taken over: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def pretty(value: Any) -> bytes:
    """Serialise for people: sorted keys, two spaces, a final line break."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise DuplicateKeyError("a key twice in one object")
    if not all(_is_showable(text) for pair in pairs for text in pair if isinstance(text, str)):
        raise StrictJsonError("a text holds control characters or half a surrogate pair")
    return fields


def _is_showable(text: str) -> bool:
    """Keep escapes, line breaks and what UTF-8 cannot carry from terminals, logs and metric labels."""
    return all(char.isprintable() for char in text)


def _no_constant(_name: str) -> Any:
    raise StrictJsonError("NaN and Infinity are not numbers")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError("a number is too large")
    return value
