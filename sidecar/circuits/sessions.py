"""A session bets once: its first k tokens that were seen, circuit by circuit, and never again.

Tokens of a session are alike, and so are its requests: as units of their own they would be evidence many times over, and every
detector would alarm on sound traffic. With several replicas a keyed hash of its id says which of them takes a session's bet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

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
    _keyed: hashlib.blake2b = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.replica < self.replicas or len(self.key) > hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError("want a replica below replicas, and a key of at most 64 bytes")
        object.__setattr__(self, "_keyed", hashlib.blake2b(digest_size=_HASH_BYTES, key=self.key))

    def takes(self, session_id: str) -> bool:
        """Whether the session bets here. Every replica with the same key agrees on one."""
        if self.replicas == 1:
            return True
        hashed = self._keyed.copy()  # a third of what it takes to make one
        hashed.update(session_id.encode())
        return int.from_bytes(hashed.digest(), "little") % self.replicas == self.replica


@dataclass(frozen=True, slots=True)
class Bets:
    """For each bet its slice, its circuit, how many of the k tokens were engaged, and which of the step's sessions made it."""

    slices: IndexArray
    circuits: IndexArray
    engaged: IndexArray
    sessions: IndexArray


@dataclass(slots=True)
class SessionCounts:
    """Who may bet, what did not, and why. All only grow."""

    named: int = 0  # sessions that bet here, once they have tokens enough
    unnamed: int = 0  # rows of no session: whose they are is not known, so they are no evidence
    elsewhere: int = 0  # rows of sessions that bet on another replica
    evicted: int = 0  # sessions given up for want of room before they had bet in every circuit
    forgotten: int = 0  # sessions that had bet, given up for want of room: they would bet again if they came back


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What is known of n sessions, the longest silent first. seen, engaged: uint8 [n, C]; slices, last: int64 [n]."""

    names: tuple[str, ...]
    seen: npt.NDArray[np.uint8]
    engaged: npt.NDArray[np.uint8]
    slices: Counts
    last: Counts

    def of(self, circuits: Sequence[int], slices: Sequence[int]) -> Seen:
        """The same sessions in other circuits and slices. Raises ValueError if there are sessions of slices that there were not.

        circuits: for each of them the place that it had before; -1 for a new one, in which nobody has bet. slices: for each that
        there was its place now; -1 where it is gone: what a session has yet to bet, it bets where its next row is.
        """
        if ((self.slices < -1) | (self.slices >= len(slices))).any():
            raise ValueError("no such slice")
        before = np.array(circuits, np.intp)
        kept = (before >= 0).astype(np.uint8)
        moved = np.array([*slices, -1], np.int64)[self.slices]  # and none stays none
        return replace(self, seen=self.seen[:, before] * kept, engaged=self.engaged[:, before] * kept, slices=moved)


class Sessions:
    """Who has been seen of every session, ``limit`` sessions at most; the one that was silent for longest goes first.

    Memory: ``nbytes`` for the counts, made once, and about 200 bytes a session for its name. spread: a seed
    for which of a step's tokens are a session's k, see ``_turns``; None: the first ones.
    """

    def __init__(self, bank: Bank, share: Share, limit: int = 4096, spread: int | None = None) -> None:
        self._share, self._limit = share, limit
        self._draws = None if spread is None else np.random.default_rng(spread)
        self._start = np.zeros(limit, np.uint32)  # of each session's turns
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
        return sum(one.nbytes for one in (self._seen, self._engaged, self._slice, self._full, self._last, self._start))

    @property
    def nameless(self) -> bool:
        """Whether rows have come, and all of them of no session: then nobody can bet."""
        counts = self.counts
        return bool(counts.unnamed) and not (counts.named or counts.elsewhere or self._places)

    def state(self) -> Seen:
        """Everything that it remembers: copies."""
        at = np.fromiter(self._places.values(), np.intp, len(self._places))
        return Seen(
            tuple(self._places),
            self._seen[at],
            self._engaged[at],
            self._slice[at].astype(np.int64),
            self._last[at].astype(np.int64),
        )

    def restore(self, known: Seen) -> None:
        """Go on from `state`, before the first row; of more than there is room for, from the newest. Raises ValueError for none."""
        many, slices = len(known.names), len(self._short)
        if known.seen.shape != (many, len(self._tokens)) or known.engaged.shape != known.seen.shape:
            raise ValueError("sessions of other circuits")
        if known.slices.shape != (many,) or known.last.shape != (many,) or len(set(known.names)) != many:
            raise ValueError("want a slice and a tick for each session")
        if (known.seen > self._tokens).any() or ((known.slices < -1) | (known.slices >= slices)).any():
            raise ValueError("more tokens than a bet has, or no such slice")
        newest = slice(max(0, many - self._limit), many)
        names = known.names[newest]
        places = np.array([self._free.pop() for _ in names], np.intp)
        self._places = dict(zip(names, places.tolist(), strict=True))
        self._seen[places], self._engaged[places] = known.seen[newest], known.engaged[newest]
        self._slice[places], self._last[places] = known.slices[newest], known.last[newest]
        self._full[places] = (self._seen[places] == self._tokens).all(axis=1)
        self._draw_starts(places)

    def succeed(self, before: Sessions, known: Seen) -> None:
        """Go on from ``before``, of which ``known`` is the `state` in these circuits, before the first row. Counts go on, too."""
        self.restore(known)
        self.counts = before.counts

    def take(self, activity: Activity, tick: int) -> Bets:
        """Note the tokens of every session, and return the bets that are complete with them. A few passes over the rows that count.

        A token that a circuit cannot use (it is no number, or of a kind that the circuit does not look at) is none of its k.
        """
        at = self._places_of(activity, tick)[activity.sessions]
        rows = np.flatnonzero(at >= 0)
        at = at[rows]
        if not len(rows):
            return Bets(at, at, at, at)
        order = np.lexsort((self._turns(activity, rows, at), at))  # by session, in their turns
        rows, at = rows[order], at[order]
        begins = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
        used = self._used(activity.sound[:, rows], begins, at)
        return self._note(activity, used, used & activity.engaged[:, rows], at[begins], begins, rows[begins])

    def _turns(self, activity: Activity, rows: IndexArray, at: IndexArray) -> IndexArray | PositionArray:
        """In which order a session's tokens of one step are looked at: a prompt's first words are no sample of it.

        By position, spread evenly over all that there are (Weyl), from a start that nobody outside knows. Each session has its own:
        prompts are laid out alike, so that one start for all would have them all bet on the same places, and what these tell
        would be another share after each restart.
        """
        if self._draws is None or activity.positions is None:
            return np.arange(len(rows))
        return (activity.positions[rows] + self._start[at]) * _GOLDEN

    def _draw_starts(self, places: Sequence[int] | IndexArray) -> None:
        if self._draws is not None:
            self._start[places] = self._draws.integers(1 << 32, size=len(places), dtype=np.uint32)

    def forget(self, before_tick: int) -> Counts:
        """Give up what was not seen since ``before_tick``. Returns [slices, C]: sessions given up before they bet, once each."""
        held = np.fromiter(self._places.values(), np.intp, len(self._places))  # the longest silent come first
        silent = self._last[held] < before_tick
        self._give_up(len(held) if silent.all() else int(silent.argmin()))
        short = self._short.copy()
        self._short.fill(0)
        return short

    def set_back(self, tick: int) -> None:
        """It is ``tick`` again: whoever was seen after that was seen now. Who has bet, has bet."""
        np.minimum(self._last, tick, out=self._last)

    def _places_of(self, activity: Activity, tick: int) -> IndexArray:
        """[sessions of the step], their places, -1 for those that do not bet (any more)."""
        names = activity.session_ids
        found = np.full(len(names), -1, np.intp)
        new = []
        for number, size in enumerate(np.bincount(activity.sessions, minlength=len(names)).tolist()):
            if not size:
                continue
            name = names[number]
            place = self._places.pop(name, None)
            if place is not None:
                self._places[name] = found[number] = place  # last in the order: it was just seen
            elif self._is_ours(name, size):
                new.append(number)
        if new:
            self._admit(names, new, found)
        at = found[found >= 0]
        self._last[at] = tick
        found[found >= 0] = np.where(self._full[at], -1, at)
        return found

    def _is_ours(self, name: str, rows: int) -> bool:
        if not name:
            self.counts.unnamed += rows
        elif self._share.takes(name):
            self.counts.named += 1
            return True
        else:
            self.counts.elsewhere += rows
        return False

    def _admit(self, names: Sequence[str], new: Sequence[int], found: IndexArray) -> None:
        """Find places for new sessions of the step, numbers of ``names``, and write them into ``found``.

        Where there is no room, those that were silent for longest go. Those that the step has too many of get none.
        """
        without = max(0, len(new) - (self._limit - int((found >= 0).sum())))
        self.counts.evicted += without
        new = new[without:]
        gone = self._full[self._give_up(len(new) - len(self._free))]
        self.counts.forgotten += int(gone.sum())
        self.counts.evicted += int((~gone).sum())
        places = [self._free.pop() for _ in new]
        self._places.update(zip([names[number] for number in new], places, strict=True))
        found[new] = places
        self._seen[places] = self._engaged[places] = 0
        self._slice[places], self._full[places] = -1, False
        self._draw_starts(places)

    def _give_up(self, many: int) -> IndexArray:
        """The places of those that were silent for longest; what they still held is there until somebody else moves in."""
        names = list(islice(self._places, max(0, many)))
        places = np.array([self._places.pop(name) for name in names], np.intp)
        self._free += places.tolist()
        begun = places[~self._full[places] & (self._slice[places] >= 0)]
        of = self._slice[begun] == np.arange(len(self._short))[:, None]  # [slices, begun]
        self._short += of.astype(np.int64) @ (self._seen[begun] < self._tokens)
        return places

    def _used(self, sound: BoolArray, begins: IndexArray, at: IndexArray) -> BoolArray:
        """[C, rows], the tokens that are among a session's first k in a circuit."""
        room = (self._tokens - self._seen[at[begins]]).T  # [C, G]
        used: BoolArray
        if len(begins) == len(at):  # a token each, as in every step but the first
            used = sound & (room > 0)
            return used
        many = np.cumsum(sound, axis=1)
        before: IndexArray = many[:, begins] - sound[:, begins]
        sizes = np.diff(begins, append=len(at))
        used = sound & (many <= np.repeat(before + room, sizes, axis=1))
        return used

    def _note(
        self,
        activity: Activity,
        used: BoolArray,
        engaged: BoolArray,
        group: IndexArray,
        begins: IndexArray,
        first: IndexArray,
    ) -> Bets:
        """group: [G], the place of each session; first: [G], its row in ``activity`` that came first."""
        new = self._slice[group] < 0
        self._slice[group[new]] = activity.slices[first[new]]
        more = _by_session(used, begins)
        seen, hits = self._seen[group] + more, self._engaged[group] + _by_session(engaged, begins)
        self._seen[group], self._engaged[group] = seen, hits
        whole = seen == self._tokens
        self._full[group] = whole.all(axis=1)
        which, circuits = np.nonzero(whole & (more > 0))
        hit = hits[which, circuits].astype(np.intp)
        return Bets(self._slice[group[which]], circuits, hit, activity.sessions[first[which]])


def _by_session(flags: BoolArray, begins: IndexArray) -> npt.NDArray[np.uint8]:
    """[C, rows] to [G, C]: how many of a session's."""
    if len(begins) == flags.shape[1]:
        return flags.T.astype(np.uint8)
    return np.add.reduceat(flags, begins, axis=1, dtype=np.uint8).T
