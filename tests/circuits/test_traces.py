"""An alarm's traces are of sessions that bet for it: in its circuit and slice, since its checkpoint, beyond its band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.detecting import flat
from sidecar.circuits.record import read_record
from sidecar.circuits.reference import Band
from sidecar.circuits.sessions import Bets, Sessions, Share
from sidecar.circuits.watch import Alarm, Checkpoint, Watched
from sidecar.live.traces import KEPT, Traces
from tests.circuits.live import of_sessions, read, two
from tests.circuits.served import archived, engaged_rows, live, step
from tests.circuits.small import LAYER, MLP

BAND = Band(0.2, 0.6)  # of four tokens 0 is below, 3 and 4 are above


def trace_id(number: int) -> str:
    return f"{number + 1:032x}"


def header(number: int) -> str:
    return f"00-{trace_id(number)}-{1:016x}-01"


def bets(engaged: Sequence[int], circuit: int = 0, part: int = 0) -> Bets:
    many = len(engaged)
    at = np.arange(many)
    return Bets(np.full(many, part), np.full(many, circuit), np.array(engaged), at)


def alarm(leans: str, since: int = -1, tick: int = 100) -> Alarm:
    watched = Watched("induction", "all", "m" * 64, "s" * 64, 4, flat(0.4, 0.1))
    return Alarm(watched, tick, 1, 1, leans, Checkpoint(since, ()))


def test_only_bets_beyond_the_band_are_told_on_the_side_that_the_alarm_leans_to_the_farthest_first() -> None:
    traces = Traces()
    traces.note(bets([0, 1, 2, 3, 4, 0]), [header(at) for at in range(6)], 7)
    assert traces.of(alarm("more"), 0, 0, BAND) == (trace_id(4), trace_id(3))
    assert traces.of(alarm("less"), 0, 0, BAND) == (trace_id(5), trace_id(0))
    assert traces.of(alarm("less"), 0, 0, Band(0.0, 0.6)) == ()  # nothing lies below a band that reaches down to 0


def test_bets_of_another_circuit_or_slice_of_before_the_checkpoint_or_after_the_alarm_are_not_told() -> None:
    traces = Traces()
    for tick in range(5):
        traces.note(bets([4]), [header(tick)], tick)
    traces.note(bets([4], circuit=1), [header(10)], 3)
    traces.note(bets([4], part=1), [header(11)], 3)
    assert traces.of(alarm("more", since=1, tick=3), 0, 0, BAND) == (trace_id(3), trace_id(2))
    assert traces.of(alarm("more", tick=3), 1, 0, BAND) == (trace_id(10),)


def test_what_is_no_header_gives_no_trace_a_trace_is_told_once_and_their_number_is_bounded() -> None:
    traces = Traces()
    traces.note(bets([4] * 4), ["", "nonsense", header(1) + "x" * 9999, header(2)], 1)
    traces.note(bets([4, 3]), [header(2), header(2)], 2)
    assert traces.of(alarm("more"), 0, 0, BAND) == (trace_id(2),)
    for tick in range(1000):
        traces.note(bets([4, 3]), [header(tick), header(5000 + tick)], 3)
    found = traces.of(alarm("more"), 0, 0, BAND)
    assert found == tuple(trace_id(one) for one in range(999, 999 - KEPT, -1))


def test_a_bet_says_which_session_of_the_step_made_it() -> None:
    bank = two(())
    sessions = Sessions(bank, Share())
    sessions.take(read(bank, of_sessions([("a", True)] * 3)), 0)
    names = [("b", True), ("c", False), ("c", False), ("a", False), ("c", False), ("c", False)]
    found = sessions.take(read(bank, of_sessions(names)), 0)
    order = ("b", "c", "a")  # "a" bet in the circuit of two tokens before
    told = [(order[at], circuit) for at, circuit in zip(found.sessions.tolist(), found.circuits.tolist(), strict=True)]
    assert sorted(told) == [("a", 0), ("c", 0), ("c", 1)]


@pytest.mark.parametrize("watched", [True, False])
def test_a_record_names_traces_of_sessions_that_were_silent_and_none_of_canaries_or_of_sound_ones(
    told: Path, watched: bool
) -> None:
    """Half of the sound sessions are engaged, so that one that is not lies below the band; one that is does not."""
    draws, number = np.random.default_rng(7), 0
    silent, engaged, canaries = set[str](), set[str](), set[str]()
    with live(told, told / "artifacts", archived(told)) as one:
        for share in [0.5] * 20 + [0.0] * 12:
            for _ in range(2):
                on = draws.random(7) < share
                parts = [engaged_rows(4, engaged=bool(each)) for each in (*on, False)]
                states = {where: np.concatenate([part[where] for part in parts]) for where in (LAYER, MLP)}
                ids = [trace_id(number + at) for at in range(8)]
                heads = [header(number + at) for at in range(8)]
                number += 8
                one.send(step(states, [4] * 8, traceparents=heads, canaries=[False] * 7 + [watched]))
                silent |= {each for each, is_on in zip(ids, on, strict=False) if not is_on}
                engaged |= {each for each, is_on in zip(ids, on, strict=False) if is_on}
                (canaries if watched else silent).add(ids[7])
            one.tick()
        one.sidecar.keeper.look()
    (path,) = (told / "archive").glob("*.json")
    traces = read_record(path).trace_ids
    assert len(traces) == KEPT
    assert set(traces) <= silent
    assert not set(traces) & (engaged | canaries)
    assert min(int(one, 16) for one in traces) > 8 * 2 * 20  # the newest are of ticks in which nobody was engaged
