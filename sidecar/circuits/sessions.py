"""A session bets once: its first k tokens that were seen, circuit by circuit, and never again.

Tokens of a session are alike, and so are its requests: as units of their own they would be evidence many times over, and every
detector would alarm on sound traffic. With several replicas a keyed hash of its id says which of them takes a session's bet.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from sidecar.circuits.activity import Activity
from sidecar.circuits.circuit import Bank
from sidecar.circuits.tick import Counts
from sidecar.types import BoolArray, IndexArray, PositionArray

_HASH_BYTES = 8
_GOLDEN = np.uint32(2654435769)  # 2^32 / golden ratio


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the ``replicas`` this one is. key: a secret of the fleet, so that nobody can choose where a session bets.

    >>> share = Share(replica=0, replicas=2, key=b"k")
    >>> [share.takes(one) for one in ("a", "b", "c", "d")]
    [True, False, True, True]
    """

    replica: int = 0
    replicas: int = 1
    key: bytes = b""

    def __post_init__(self) -> None:
        if not 0 <= self.replica < self.replicas or len(self.key) > hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError("want a replica below replicas, and a key of at most 64 bytes")

    def takes(self, session_id: str) -> bool:
        """Whether the session bets here. Every replica with the same key agrees on one."""
        if self.replicas == 1:
            return True
        digest = hashlib.blake2b(session_id.encode(), digest_size=_HASH_BYTES, key=self.key).digest()
        return int.from_bytes(digest, "little") % self.replicas == self.replica


@dataclass(frozen=True, slots=True)
class Bets:
    """For each bet its slice, its circuit, and how many of the k tokens were engaged."""

    slices: IndexArray
    circuits: IndexArray
    engaged: IndexArray


@dataclass(slots=True)
class SessionCounts:
    """What did not bet, and why. All only grow."""

    unnamed: int = 0  # rows of no session: whose they are is not known, so they are no evidence
    elsewhere: int = 0  # rows of sessions that bet on another replica
    evicted: int = 0  # sessions given up for want of room before they had bet in every circuit
    forgotten: int = 0  # sessions that had bet, given up for want of room: they would bet again if they came back


class Sessions:
    """Who has been seen of every session, ``limit`` sessions at most; the one that was silent for longest goes first.

    Memory: ``nbytes`` for the counts, made once, and about 200 bytes a session for its name. spread: which of a step's tokens are a
    session's k, see ``_turns``; None: the first ones.
    """

    def __init__(self, bank: Bank, share: Share, limit: int = 4096, spread: int | None = None) -> None:
        self._share, self._limit = share, limit
        self._spread = None if spread is None else np.uint32(spread)
        self._tokens = np.array([one.tokens for one in bank.circuits], np.uint8)  # [C]
        self._seen = np.zeros((limit, len(bank.circuits)), np.uint8)
        self._engaged = np.zeros_like(self._seen)
        self._slice = np.full(limit, -1, np.intp)
        self._full = np.zeros(limit, np.bool_)
        self._last = np.zeros(limit, np.int64)  # the tick at which it was seen last
        self._places: dict[str, int] = {}  # by session id, the longest silent first
        self._free = list(range(limit))[::-1]
        self._short = np.zeros((len(bank.slices), len(bank.circuits)), np.int64)  # given up, until it is told
        self.counts = SessionCounts()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self._seen, self._engaged, self._slice, self._full, self._last))

    def take(self, activity: Activity, tick: int) -> Bets:
        """Note the tokens of every session, and return the bets that are complete with them. A few passes over the rows that count.

        A token that a circuit cannot use (it is no number, or of a kind that the circuit does not look at) is none of its k.
        """
        places = self._places_of(activity, tick)
        rows = np.flatnonzero(places[activity.sessions] >= 0)
        rows = rows[
            np.lexsort((self._turns(activity, rows), places[activity.sessions[rows]]))
        ]  # by session, in their turns
        at = places[activity.sessions[rows]]
        if not len(rows):
            return Bets(at, at, at)
        begins = np.flatnonzero(np.r_[True, at[1:] != at[:-1]])
        used = self._used(activity.sound[:, rows], begins, at)
        return self._note(used, used & activity.engaged[:, rows], begins, at, activity.slices[rows[begins]])

    def _turns(self, activity: Activity, rows: IndexArray) -> IndexArray | PositionArray:
        """In which order a session's tokens of one step are looked at: a prompt's first words are no sample of it.

        By position, spread evenly over all that there are (Weyl), from a start that nobody outside knows.
        """
        if self._spread is None or activity.positions is None:
            return np.arange(len(rows))
        return (activity.positions[rows] + self._spread) * _GOLDEN

    def forget(self, before_tick: int) -> Counts:
        """Give up what was not seen since ``before_tick``. Returns [slices, C]: sessions given up before they bet, once each."""
        for name, place in list(self._places.items()):  # the longest silent come first
            if self._last[place] >= before_tick:
                break
            self._give_up(name, place)
        short = self._short.copy()
        self._short.fill(0)
        return short

    def _places_of(self, activity: Activity, tick: int) -> IndexArray:
        """[sessions of the step], their places, -1 for those that do not bet (any more)."""
        sizes = np.bincount(activity.sessions, minlength=len(activity.session_ids))
        gone = self.counts.evicted
        places = np.full(len(activity.session_ids), -1, np.intp)
        for number, (name, size) in enumerate(zip(activity.session_ids, sizes.tolist(), strict=True)):
            if not size:
                continue
            if not name:
                self.counts.unnamed += size
            elif not self._share.takes(name):
                self.counts.elsewhere += size
            else:
                place = self._place(name, tick)
                places[number] = -1 if self._full[place] else place
        if self.counts.evicted > gone:  # perhaps one of this very step, whose place is another's by now
            places = np.where(
                [self._places.get(name) == at for name, at in zip(activity.session_ids, places.tolist(), strict=True)],
                places,
                -1,
            )
        return places

    def _place(self, name: str, tick: int) -> int:
        place = self._places.pop(name, None)
        if place is None:
            if not self._free:
                oldest = next(iter(self._places))
                full = self._give_up(oldest, self._places[oldest])
                self.counts.forgotten += full
                self.counts.evicted += not full
            place = self._free.pop()
            self._seen[place] = self._engaged[place] = 0
            self._slice[place], self._full[place] = -1, False
        self._places[name] = place  # last in the order: it was just seen
        self._last[place] = tick
        return place

    def _give_up(self, name: str, place: int) -> bool:
        """Whether it had bet in every circuit."""
        del self._places[name]
        self._free.append(place)
        few = self._seen[place] < self._tokens
        if self._slice[place] >= 0:
            self._short[self._slice[place]] += few
        return not few.any()

    def _used(self, sound: BoolArray, begins: IndexArray, at: IndexArray) -> BoolArray:
        """[C, rows], the tokens that are among a session's first k in a circuit."""
        many = np.cumsum(sound, axis=1)
        sizes = np.diff(np.r_[begins, len(at)])
        before: IndexArray = many[:, begins] - sound[:, begins]
        room = (self._tokens - self._seen[at[begins]]).T
        used: BoolArray = sound & (many <= np.repeat(before + room, sizes, axis=1))
        return used

    def _note(
        self, used: BoolArray, engaged: BoolArray, begins: IndexArray, at: IndexArray, slices: IndexArray
    ) -> Bets:
        group = at[begins]  # [G], the place of each session
        new = self._slice[group] < 0
        self._slice[group[new]] = slices[new]
        more, hits = (np.add.reduceat(one, begins, axis=1, dtype=np.uint8).T for one in (used, engaged))  # [G, C]
        self._seen[group] += more
        self._engaged[group] += hits
        whole = self._seen[group] == self._tokens
        self._full[group] = whole.all(axis=1)
        which, circuits = np.nonzero(whole & (more > 0))
        return Bets(self._slice[group[which]], circuits, self._engaged[group[which], circuits].astype(np.intp))
