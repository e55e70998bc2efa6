"""What is kept over a restart comes back as it was, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.circuits.circuit import Bank
from sidecar.circuits.sessions import Bets, Seen, Sessions, Share
from sidecar.live.remembered import Remembered, from_bytes
from sidecar.live.state_file import Saved, StateFile, StateFileError
from tests.circuits.live import read, two
from tests.circuits.live import step as steps_of


def sorted_bets(bets: Bets) -> list[list[int]]:
    return sorted(np.stack([bets.slices, bets.circuits, bets.engaged], axis=1).tolist())


def test_sessions_bet_after_a_restart_as_they_would_have_without_it_and_the_newest_are_kept() -> None:
    rng, bank = np.random.default_rng(0), two()
    steps = [read(bank, steps_of(rng, 80, sessions=30)) for _ in range(4)]
    whole, before, after = Sessions(bank, Share()), Sessions(bank, Share()), Sessions(bank, Share())
    for tick, activity in enumerate(steps[:2]):
        whole.take(activity, tick)
        before.take(activity, tick)
    after.restore(before.state())
    for tick, activity in enumerate(steps[2:], 2):
        bets, again = whole.take(activity, tick), after.take(activity, tick)
        assert len(bets.slices) > 0
        assert sorted_bets(bets) == sorted_bets(again)
    assert whole.forget(99).tolist() == after.forget(99).tolist()
    few = Sessions(bank, Share(), limit=5)
    few.restore(before.state())
    assert few.state().names == before.state().names[-5:]
    with pytest.raises(ValueError, match="other circuits"):
        Sessions(Bank(bank.circuits[:1]), Share()).restore(before.state())


def test_what_is_kept_comes_back_byte_by_byte_and_nothing_else_is_believed(tmp_path: Path) -> None:
    seen = Seen(
        ("a", "b"),
        np.array([[4, 2], [0, 1]], np.uint8),
        np.array([[3, 0], [0, 1]], np.uint8),
        np.array([1, -1]),
        np.array([7, 8]),
    )
    state: dict[str, Any] = {"tick": 8, "detectors": []}
    known = Remembered(8, 60, state, {"c": "d"}, (("all",), ("c", "s", "m"), ("d", "s", "m")), seen)
    data = known.to_bytes()
    again = from_bytes(data)
    assert again.to_bytes() == data
    assert (again.bank, again.sessions.names) == (known.bank, ("a", "b"))
    np.testing.assert_array_equal(again.sessions.seen, seen.seen)
    for wrong in (
        b"",
        data[:-1],
        data + b"\0",
        data.replace(b"detectors/1", b"detectors/2"),
        b"\2" + b"\0" * 7 + b"[]",
    ):
        with pytest.raises(ValueError):
            from_bytes(wrong)
    file = StateFile(tmp_path / "circuits")
    assert file.read() is None
    saved = Saved(8, 60, True, ((1, 8, "a.parquet", "d" * 64),), ({"cause": None},), data)
    file.write(saved)
    assert file.read() == saved
    whole = (tmp_path / "circuits").read_bytes()
    for at in (0, 70, len(whole) - 1):
        (tmp_path / "circuits").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StateFileError, match="damaged"):
            file.read()
    assert [one.name for one in tmp_path.iterdir()] == ["circuits"]
