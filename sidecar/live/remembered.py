"""What a worker's end must not take with it: the evidence of its detectors, and which sessions have bet. Bytes, for a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sidecar.circuits.sessions import Seen
from sidecar.config import Circuits

_FORMAT = "stethoscope.detectors/1"
_LENGTH_BYTES = 8
_ARRAYS = (("seen", np.uint8), ("engaged", np.uint8), ("slices", np.int64), ("last", np.int64))
T = TypeVar("T")
Identity = tuple[tuple[str, ...], ...]  # of what is counted: the slices, and then name, spec and model of each circuit


@dataclass(frozen=True, slots=True, eq=False)
class Remembered:
    """As it was when ``tick`` had closed. watch: `Watch.state`; baselines: digest of what each circuit's evidence is against.

    sessions: of the circuits and slices of ``bank``, of no others.
    """

    tick: int
    tick_s: int
    watch: dict[str, Any]
    baselines: Mapping[str, str]
    bank: Identity
    sessions: Seen

    def to_bytes(self) -> bytes:
        facts = {
            "format": _FORMAT,
            "tick": self.tick,
            "tick_s": self.tick_s,
            "watch": self.watch,
            "baselines": dict(self.baselines),
            "bank": self.bank,
            "sessions": self.sessions.names,
        }
        text = json.dumps(facts).encode()
        arrays = (np.ascontiguousarray(getattr(self.sessions, name), kind).tobytes() for name, kind in _ARRAYS)
        return b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, *arrays))

    def held_against(self, baselines: Mapping[str, str]) -> dict[str, Any]:
        """The state of those detectors whose baseline is still the same: evidence against another one is no evidence."""
        kept = [
            one
            for one in self.watch["detectors"]
            if self.baselines.get(one["circuit"]) == baselines.get(one["circuit"], "")
        ]
        return self.watch | {"detectors": kept}

    def sessions_of(self, bank: Identity) -> Seen:
        """In the circuits and slices of ``bank``. Raises ValueError for what is no state."""
        return moved(self.sessions, self.bank, bank)

    def without_history(self) -> Remembered:
        """The same, but that a replay begins now: for evidence whose archive is not whole."""
        for one in self.watch["detectors"]:
            one["marks"], one["mark_ticks"] = [one["log_m"]] * 2, [self.tick] * 2
        return self


def moved(sessions: Seen, before: Identity, now: Identity) -> Seen:
    """Their bets in every circuit that stays: who has bet there does not bet again because another one came or went."""
    slices, *circuits = now
    return sessions.of([_place(before[1:], one) for one in circuits], [_place(slices, name) for name in before[0]])


def _place(among: Sequence[T], one: T) -> int:
    return among.index(one) if one in among else -1


def goes_on(config: Circuits, tick: int, tick_s: int, now: int) -> bool:
    """Whether detectors that closed ``tick``, of ``tick_s`` seconds, may go on in the tick ``now``.

    Not after more than ``resume_ticks`` ticks that nobody saw: an alarm would be of two times at once. Not if the clock was set
    back, nor with ticks of another length. An orderly end closes the tick that runs: then ``now`` may still be the same.
    """
    missed = now - tick - 1
    return tick_s == config.tick_s and config.resume_ticks > 0 and -1 <= missed <= config.resume_ticks


def from_bytes(data: bytes) -> Remembered:
    """Raises ValueError if they are none of `Remembered.to_bytes`."""
    try:
        begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        facts = json.loads(data[_LENGTH_BYTES:begin])
        if facts["format"] != _FORMAT:
            raise ValueError("another version")
        slices, *circuits = facts["bank"]
        return Remembered(
            int(facts["tick"]),
            int(facts["tick_s"]),
            facts["watch"],
            facts["baselines"],
            (tuple(slices), *(tuple(one) for one in circuits)),
            _sessions(data, begin, tuple(facts["sessions"]), len(circuits)),
        )
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError("this is no state of detectors") from error


def _sessions(data: bytes, at: int, names: tuple[str, ...], circuits: int) -> Seen:
    found: list[Any] = []
    for _, kind in _ARRAYS:
        shape = (len(names), circuits) if kind is np.uint8 else (len(names),)
        count = int(np.prod(shape))
        found.append(np.frombuffer(data, kind, count, at).reshape(shape))
        at += count * np.dtype(kind).itemsize
    if at != len(data):
        raise ValueError("too many bytes")
    return Seen(names, *found)
