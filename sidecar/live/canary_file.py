"""Rounds of canaries as they are kept, and the reference that is made of some: safetensors, with what they are of beside them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sidecar.circuits.canary import Group, Reference, Token, make_reference
from sidecar.types import FloatArray

ROUND, REFERENCE = "stethoscope.canary_round/1", "stethoscope.canary_reference/1"
_LIMIT_BYTES = 64 << 20
_LENGTH_BYTES = 8


class CanaryFileError(Exception):
    """A file of canaries cannot be read or written, or is not what it should be: the text is for people."""


@dataclass(frozen=True, slots=True)
class About:
    """What canaries are of. Two rounds are compared only where all of it is the same but for ``at_s`` and ``groups``."""

    model_hash: str
    dtype: str
    engine: str
    prompts: str  # SHA-256 of the prompts
    at_s: int  # seconds since the epoch
    groups: tuple[tuple[str, int, bool], ...]  # name, columns, relative

    def same(self, other: About) -> bool:
        return not self.unlike(other)

    def unlike(self, other: About) -> tuple[str, ...]:
        """In what they differ, of that which keeps two rounds from being compared; for people."""
        pairs = zip(("weights", "dtype", "engine", "prompts"), self._of, other._of, strict=True)
        return tuple(name for name, mine, theirs in pairs if mine != theirs)

    @property
    def _of(self) -> tuple[str, ...]:
        return (self.model_hash, self.dtype, self.engine, self.prompts)

    def laid_out(self) -> list[Group]:
        """Its groups, one after another."""
        found, at = [], 0
        for name, columns, relative in self.groups:
            found.append(Group(name, slice(at, at + columns), relative))
            at += columns
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A round. values: float32, by token, in the columns of its groups."""

    about: About
    values: Mapping[Token, Any]


def write_round(folder: Path, kept: Kept, most: int) -> Path:
    """A file of its own; of more than ``most`` the oldest goes. Raises CanaryFileError."""
    tokens = sorted(kept.values)
    rows = np.stack([kept.values[token] for token in tokens]).astype(np.float32)
    path = folder / f"round-{kept.about.at_s:010d}.safetensors"
    _write(path, {"values": rows}, {"format": ROUND, "about": asdict(kept.about), "tokens": tokens})
    for old in rounds_in(folder)[:-most]:
        old.unlink(missing_ok=True)
    return path


def rounds_in(folder: Path) -> list[Path]:
    """The files of rounds, the oldest first."""
    return sorted(folder.glob("round-*.safetensors"))


def read_round(path: Path) -> Kept:
    """Raises CanaryFileError."""
    facts, arrays = _read(path, ROUND)
    about, tokens = _about(facts), _tokens(facts)
    return Kept(about, dict(zip(tokens, arrays["values"], strict=True)))


def record(paths: Sequence[Path], out: Path) -> tuple[About, Reference]:
    """Make a reference of rounds and write it. Raises CanaryFileError, also if they are not of one model and one set of prompts."""
    rounds = [read_round(path) for path in paths]
    if len(rounds) < 2:
        raise CanaryFileError("a reference wants two rounds at least")
    about = rounds[-1].about
    if not all(one.about.same(about) and one.about.groups == about.groups for one in rounds):
        raise CanaryFileError("these rounds are of several models, engines, circuits or prompts: a reference is of one")
    try:
        made = make_reference([one.values for one in rounds], about.laid_out(), about.dtype)
    except ValueError as error:
        raise CanaryFileError(str(error)) from None
    facts = {"format": REFERENCE, "about": asdict(about), "tokens": made.tokens, "floors": made.floors}
    _write(out, {"means": made.means}, facts | {"rounds": len(rounds)})
    return about, made


def read_reference(path: Path) -> tuple[About, Reference]:
    """Raises CanaryFileError."""
    facts, arrays = _read(path, REFERENCE)
    floors = {str(name): float(floor) for name, floor in facts["floors"].items()}
    return _about(facts), Reference(tuple(_tokens(facts)), arrays["means"].astype(np.float64), floors)


def shared_groups(reference: About, about: About) -> list[Group]:
    """The groups of a reference that a plan has as well: one that was taken out of it is not missing from its rounds."""
    names = {name for name, _, _ in about.groups}
    return [one for one in reference.laid_out() if one.name in names]


def in_columns_of(reference: About, about: About, values: Mapping[Token, FloatArray]) -> dict[Token, FloatArray]:
    """Values in the columns of a reference: a group that this plan has not, or of another size, is NaN."""
    mine = {one.name: one.columns for one in about.laid_out()}
    width = sum(columns for _, columns, _ in reference.groups)
    made = {}
    for token, row in values.items():
        laid = np.full(width, np.nan, np.float32)
        for one in reference.laid_out():
            if one.name in mine and mine[one.name].stop - mine[one.name].start == one.columns.stop - one.columns.start:
                laid[one.columns] = row[mine[one.name]]
        made[token] = laid
    return made


def _about(facts: Mapping[str, Any]) -> About:
    told = facts["about"]
    return About(**{**told, "groups": tuple((name, columns, relative) for name, columns, relative in told["groups"])})


def _tokens(facts: Mapping[str, Any]) -> list[Token]:
    return [(name, offset) for name, offset in facts["tokens"]]


def _write(path: Path, arrays: dict[str, Any], facts: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(save(arrays, metadata={"canary": json.dumps(facts)}))
        Path(temporary).replace(path)
    except OSError as error:
        raise CanaryFileError(f"{path} cannot be written: {error.strerror}") from None


def _read(path: Path, want: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        facts = json.loads(json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])["__metadata__"]["canary"])
        arrays = load(data)
    except OSError as error:
        raise CanaryFileError(f"{path} cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise CanaryFileError(f"{path} is no file of canaries") from None
    if not isinstance(facts, dict) or facts.get("format") != want:
        raise CanaryFileError(f"{path} is no {want.partition('.')[2].partition('/')[0].replace('_', ' ')}")
    return facts, arrays
