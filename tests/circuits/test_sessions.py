"""A session bets once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.circuits.activity import SINKS, Rows
from sidecar.circuits.circuit import Bank
from sidecar.circuits.sessions import Sessions, Share
from sidecar.circuits.sketch import LiveSketch
from tests.circuits.live import circuit, of_sessions, read, step, two

ALONE = Bank((circuit(tokens=4),))


def bets(sessions: Sessions, bank: Bank, rows: Rows, tick: int = 0) -> list[tuple[int, int, int]]:
    made = sessions.take(read(bank, rows), tick)
    return sorted(zip(made.slices.tolist(), made.circuits.tolist(), made.engaged.tolist(), strict=True))


def test_the_first_k_tokens_make_the_bet_and_what_comes_after_changes_nothing():
    sessions = Sessions(ALONE, Share())
    assert bets(sessions, ALONE, of_sessions([("a", True), ("a", False), ("a", True)])) == []
    assert bets(sessions, ALONE, of_sessions([("a", False), ("a", True), ("a", True)])) == [(0, 0, 2)]
    assert bets(sessions, ALONE, of_sessions([("a", True)] * 20)) == []


def test_a_session_bets_once_however_its_tokens_are_cut_into_steps_and_mixed_with_others():
    rng = np.random.default_rng(0)
    bank = two()
    rows = step(rng, 900, sessions=30)
    whole = Sessions(bank, Share())
    together = bets(whole, bank, rows)
    apart, found = Sessions(bank, Share()), []
    for start in range(0, 900, 17):
        cut = slice(start, start + 17)
        part = Rows(rows.readings[cut], rows.positions[cut], rows.slices[cut], rows.sessions[cut], rows.session_ids)
        found += bets(apart, bank, part)
    assert sorted(found) == together
    assert len(together) == 60  # every session in both circuits


def test_a_session_bets_in_the_slice_of_its_first_token():
    bank = two()
    rows = of_sessions([("a", True)] * 4)
    rows.slices[:] = [2, 1, 1, 0]
    assert bets(Sessions(bank, Share()), bank, rows) == [(2, 0, 4), (2, 1, 2)]


def test_sessions_in_other_circuits_keep_their_bets_where_a_circuit_stays_and_begin_at_zero_in_a_new_one():
    """Going on as if the circuit that stays had been alone, or the new one had come to fresh sessions."""
    both, other = two(), Bank((circuit("other", first=1, tokens=4), two().circuits[1]), two().named_slices)
    rng = np.random.default_rng(0)
    before, rows = step(rng, 60, sessions=30), step(rng, 200, sessions=40)
    sessions, alone, new = Sessions(both, Share()), Sessions(both, Share()), Sessions(other, Share())
    bets(sessions, both, before)
    bets(alone, both, before)
    after = Sessions(other, Share())
    after.succeed(sessions, sessions.state().of([-1, 1], [0, 1, 2]))
    assert after.counts is sessions.counts
    found = bets(after, other, rows)
    staying = [one for one in found if one[1] == 1]
    assert staying == [one for one in bets(alone, both, rows) if one[1] == 1]
    assert len(staying) < 40
    assert sorted(one[2] for one in found if one[1] == 0) == sorted(
        one[2] for one in bets(new, other, rows) if one[1] == 0
    )
    with pytest.raises(ValueError, match="no such slice"):
        sessions.state().of([0, 1], [0])


def test_a_session_of_a_slice_that_is_gone_bets_what_it_has_not_bet_where_its_next_row_is():
    sessions = Sessions(two(), Share())
    first = of_sessions([("a", True)] * 2)
    first.slices[:] = 1
    assert bets(sessions, two(), first) == [(1, 1, 2)]
    now = two(("chat",))
    after = Sessions(now, Share())
    after.restore(sessions.state().of([0, 1], [0, -1, 1]))
    assert bets(after, now, of_sessions([("a", True)] * 4)) == [(0, 0, 4)]


def test_a_clock_that_is_set_back_makes_nobody_bet_again_and_nobody_be_remembered_for_longer():
    sessions = Sessions(ALONE, Share())
    assert len(bets(sessions, ALONE, of_sessions([("a", True)] * 4), tick=1440)) == 1
    sessions.set_back(5)
    assert bets(sessions, ALONE, of_sessions([("a", True)] * 4), tick=6) == []
    sessions.forget(before_tick=7)
    assert len(sessions) == 0


def test_a_token_that_is_no_number_is_none_of_the_k():
    rows = of_sessions([("a", True)] * 5)
    rows.readings[1, 0] = np.nan
    sessions = Sessions(ALONE, Share())
    first = Rows(rows.readings[:4], rows.positions[:4], rows.slices[:4], rows.sessions[:4], rows.session_ids)
    assert bets(sessions, ALONE, first) == []
    assert bets(sessions, ALONE, of_sessions([("a", True)])) == [(0, 0, 4)]


def test_a_circuit_that_can_use_no_token_of_a_long_prompt_keeps_no_other_from_its_bet_and_takes_no_more_time():
    bank = two()
    rows = of_sessions([("a", True)] * 200_000)
    rows.readings[:, 0] = np.nan  # the first circuit's
    sessions = Sessions(bank, Share())
    assert bets(sessions, bank, rows) == [(0, 1, 2)]  # token by token this would be minutes
    assert sessions.forget(before_tick=9).tolist() == [[1, 0], [0, 0], [0, 0]]


def test_more_sessions_in_a_step_than_there_is_room_for_are_never_mixed_up():
    sessions = Sessions(ALONE, Share(), limit=2)
    mixed = [(name, name == "e") for name in "abcde" for _ in range(2)]
    assert bets(sessions, ALONE, of_sessions(mixed)) == []  # a, b and c made room for d and e: two tokens are no four
    assert bets(sessions, ALONE, of_sessions([("d", False)] * 2 + [("e", True)] * 2)) == [(0, 0, 0), (0, 0, 4)]


def plainly(steps: list[Rows], limit: int, tokens: int) -> list[list[tuple[int, int, int]]]:
    """Row by row. A session that is given up begins anew when it comes again; one of the very step makes room for no new one."""
    known: dict[str, list[bool]] = {}  # the longest silent first
    told = []
    for rows in steps:
        here = list(dict.fromkeys(rows.session_ids[at] for at in rows.sessions.tolist()))
        again = [one for one in here if one in known]
        new = [one for one in here if one not in known]
        for name in again + new[max(0, len(new) - (limit - len(again))) :]:
            known[name] = known.pop(name, [])
            if len(known) > limit:
                del known[next(iter(known))]
        found = []
        for at, engaged in zip(rows.sessions.tolist(), (rows.readings.sum(axis=1) > 0).tolist(), strict=True):
            seen = known.get(rows.session_ids[at])
            if seen is not None and len(seen) < tokens:
                seen.append(engaged)
                if len(seen) == tokens:
                    found.append((0, 0, sum(seen)))
        told.append(sorted(found))
    return told


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12))
def test_however_many_come_and_go_it_bets_what_a_plain_loop_bets(seed, limit, names):
    rng = np.random.default_rng(seed)
    steps = [
        of_sessions([(f"s{name}", bool(on)) for name, on in rng.integers(0, (names, 2), (rng.integers(1, 15), 2))])
        for _ in range(30)
    ]
    sessions = Sessions(ALONE, Share(), limit)
    assert [bets(sessions, ALONE, one) for one in steps] == plainly(steps, limit, 4)
    assert len(sessions) <= limit


def test_rows_of_nobodys_session_bet_nothing_and_are_counted():
    sessions = Sessions(ALONE, Share())
    assert bets(sessions, ALONE, of_sessions([("", True)] * 6)) == []
    assert sessions.counts.unnamed == 6
    assert len(sessions) == 0


@given(st.binary(min_size=1, max_size=64), st.integers(1, 7), st.text(max_size=30))
def test_exactly_one_replica_takes_a_session(key, replicas, name):
    assert sum(Share(at, replicas, key).takes(name) for at in range(replicas)) == 1


def test_the_key_decides_where_a_session_bets_and_sessions_spread_evenly():
    names = [f"session {at}" for at in range(3000)]
    one = [Share(0, 3, b"one").takes(name) for name in names]
    other = [Share(0, 3, b"other").takes(name) for name in names]
    assert one != other
    assert 900 < sum(one) < 1100


def test_a_session_split_over_replicas_bets_on_one_of_them():
    replicas = [Sessions(ALONE, Share(at, 2, b"k")) for at in range(2)]
    rows = of_sessions([(f"session {at // 8}", True) for at in range(400)])
    made = [bets(one, ALONE, rows) for one in replicas]
    assert sum(map(len, made)) == 50
    assert all(made)
    assert sum(one.counts.elsewhere for one in replicas) == 400


def test_few_tokens_are_no_bet_and_are_told_once_when_the_session_is_given_up():
    sessions = Sessions(two(), Share())
    assert bets(sessions, two(), of_sessions([("a", True)] * 3), tick=1) == [
        (0, 1, 2)
    ]  # k = 2 is reached, k = 4 is not
    assert sessions.forget(before_tick=1).sum() == 0
    assert sessions.forget(before_tick=2).tolist() == [[1, 0], [0, 0], [0, 0]]
    assert sessions.forget(before_tick=9).sum() == 0
    live = LiveSketch(two(), "a", 60)
    live.short(np.array([[1, 0], [0, 0], [0, 0]]))
    (row,) = live.close(0)
    assert (row.key.circuit, row.single("short"), row.evidence.sum()) == ("induction", 1, 0)


def test_memory_is_bounded_the_longest_silent_goes_first_and_is_counted():
    sessions = Sessions(ALONE, Share(), limit=10)
    before = sessions.nbytes
    bets(sessions, ALONE, of_sessions([("done", True)] * 4))
    for at in range(25):
        bets(sessions, ALONE, of_sessions([(f"s{at}", True)]))
    assert len(sessions) == 10
    assert sessions.nbytes == before
    assert (sessions.counts.evicted, sessions.counts.forgotten) == (15, 1)
    assert bets(sessions, ALONE, of_sessions([("s24", True)] * 3)) == [(0, 0, 4)]  # is still there
    assert bets(sessions, ALONE, of_sessions([("s1", True)] * 3)) == []  # began anew


@pytest.mark.parametrize("wrong", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError, match="replica below"):
        Share(*wrong)


def laid_out_alike(sessions: int, tokens: int) -> Rows:
    """Sessions of as many tokens each, of which the last third is engaged: as prompts are that were made by one template."""
    at = np.tile(np.arange(tokens), sessions)
    readings = np.where(at >= 2 * tokens // 3, 1.0, -1.0)[:, None].repeat(5, axis=1).astype(np.float32)
    owners = np.repeat(np.arange(sessions), tokens)
    names = tuple(f"session {number}" for number in range(sessions))
    return Rows(readings, (SINKS + at).astype(np.uint32), np.zeros(len(at), np.intp), owners, names)


def test_what_sessions_of_one_layout_bet_together_does_not_depend_on_what_the_process_drew():
    """A baseline was learned by another process: were all sessions to bet on the same places, its band would not hold here."""
    rows = laid_out_alike(400, 12)
    shares = []
    for seed in range(12):
        made = bets(Sessions(ALONE, Share(), spread=seed), ALONE, rows)
        assert len(made) == 400
        shares.append(sum(engaged for _, _, engaged in made) / 1600)
    assert max(shares) - min(shares) < 0.03
    assert abs(np.mean(shares) - 1 / 3) < 0.01
