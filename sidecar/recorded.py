"""A folder of recorded states: one file a request, and beside them which engine they all came from and where in it.

engine.json  {"schema", "model": the engine's identity as it registered, "tap_points": the layers of every file, in their order}
NAME.safetensors  one request, in the layout of ``sidecar.states_file``
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from probes.strictjson import StrictJsonError, parse_strict
from sidecar.types import ModelIdentity, TapPoint

ENGINE, SUFFIX = "engine.json", ".safetensors"
SCHEMA = "stethoscope.recorded/1"
_LIMIT_BYTES = 1 << 20
_TYPES: dict[str, type] = {"str": str, "int": int}  # annotations are text here


class RecordedError(Exception):
    """The folder is not what it should be, or is of something else; the text says how, for people."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where every file of a folder comes from. tap_points: of the files' layers, in their order."""

    model: ModelIdentity
    tap_points: tuple[TapPoint, ...]


def states_path(folder: Path, name: str) -> Path:
    """Where the states of the request ``name`` lie, or will."""
    return folder / f"{name}{SUFFIX}"


def read_origin(folder: Path) -> Origin | None:
    """None if nothing was ever recorded there. Raises RecordedError, naming the file, if that cannot be understood."""
    path = folder / ENGINE
    try:
        with path.open("rb") as file:
            told = parse_strict(file.read(_LIMIT_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordedError(f"{path} cannot be read: {error.strerror}") from None
    except StrictJsonError as error:
        raise RecordedError(f"{path} is no sound JSON: {error}") from None
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise RecordedError(f"{path} is not of this version ({SCHEMA})")
    try:
        return Origin(_identity(told["model"]), tuple(TapPoint.parse(name) for name in told["tap_points"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordedError(f"{path} is not what this version writes: {error}") from None


def write_origin(folder: Path, origin: Origin) -> None:
    """Whole or not at all. Raises OSError."""
    points = [point.name for point in origin.tap_points]
    text = json.dumps({"schema": SCHEMA, "model": asdict(origin.model), "tap_points": points}, indent=1)
    temporary = folder / f".{ENGINE}.{os.getpid()}.part"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / ENGINE)


def differences(one: ModelIdentity, other: ModelIdentity) -> str:
    """What is not the same in both, in words; empty if nothing.

    >>> differences(ModelIdentity("m", "A", 2, 8, dtype="float32"), ModelIdentity("m", "A", 2, 8, dtype="float16"))
    'dtype: float32 and float16'
    """
    pairs = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(ModelIdentity))
    return "; ".join(
        f"{name.replace('_', ' ')}: {_short(mine)} and {_short(theirs)}"
        for name, mine, theirs in pairs
        if mine != theirs
    )


def _identity(told: Any) -> ModelIdentity:
    identity = ModelIdentity(**told)
    for field in fields(ModelIdentity):
        if type(getattr(identity, field.name)) is not _TYPES[str(field.type)]:
            raise TypeError(f"{field.name} is of another type")
    return identity


def _short(value: Any) -> str:
    text = str(value)
    return (text[:12] if len(text) == 64 else text) or "(not known)"
