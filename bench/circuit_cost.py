"""What a circuit costs while it works: us per sampled token and per tick; and that merging loses no bit."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bench import circuit_memory, tick_end
from bench.drift_peers import PEERS
from bench.monitored import BATCH, CIRCUITS, TOKENS, Circuits, Monitored, directions, plan, readings, routes, shipped
from bench.row import Row, RowOfRounds, median_interval
from bench.streams import AR1, DAY, TICK_S, stream, tick_means
from sidecar.circuits.activity import SINKS, Activity, Reader, Rows
from sidecar.circuits.circuit import Bank
from sidecar.circuits.detector import BETS, NOTHING, advance, betting_table, log_e
from sidecar.circuits.merge import merge
from sidecar.circuits.reference import Band
from sidecar.circuits.sessions import Sessions, Share
from sidecar.circuits.sketch import LiveSketch
from sidecar.circuits.tick import TickRow

FloatArray = npt.NDArray[np.float64]


def measure(*, short: bool) -> Iterator[Row]:
    rounds, merges = (5, 20) if short else (200, 1000)
    first = list(_tokens(rounds))
    rest = [*_sessions(rounds), _detector(rounds), *_peers(4 if short else 20), _merges(merges)]
    rest += [*tick_end.measure(5 if short else 120), *circuit_memory.live_bytes(), *circuit_memory.measure(short=short)]
    yield from map(_slower, first, _tokens(rounds))
    yield from rest


def _slower(one: Row, other: Row) -> Row:
    """Of the same taken at the beginning and at the end of the run: a machine is not equally fast all the time."""
    worse = max(one, other, key=lambda row: row.value)
    note = f"{worse.note}; the slower one of two"
    rounds = {"at the beginning and at the end": (one.value, other.value)}
    return RowOfRounds(worse.name, worse.value, worse.goal, worse.met, worse.interval, note, rounds)


def _tokens(rounds: int) -> Iterator[Row]:
    """What a sampled token costs, part by part and as a whole."""
    few = max(3, rounds // 4)  # a step of what is shipped takes several times as long
    for circuits, told, many in ((directions(), "", rounds), (shipped(), ", as shipped", few)):
        for slices in (1, 8):
            of = f"{slices} slice{'s' if slices > 1 else ''}{told}"
            yield from _update(circuits, slices, of, many)
            yield _whole(circuits, slices, f"most sessions have bet, {of}", 32 * TOKENS, few)
            yield _whole(circuits, slices, f"sessions go when they have bet, {of}", TOKENS, few)


def _where(circuits: Circuits) -> str:
    return f"{CIRCUITS} circuits x {len(circuits[0].nodes)} nodes, batches of {BATCH}"


def _steps(own: Bank, count: int, *, mixed: bool = False) -> list[Rows]:
    """Decode steps of 64 tokens: one each of 64 sessions, or mixed: of any, so that some have several."""
    rng = np.random.default_rng(0)
    names = tuple(f"session {at}" for at in range(BATCH))
    return [
        Rows(
            readings(own, BATCH, rng),
            np.full(BATCH, SINKS, np.uint32),
            rng.integers(0, len(own.slices), BATCH),
            rng.integers(0, BATCH, BATCH) if mixed else np.arange(BATCH),
            names,
        )
        for _ in range(count)
    ]


def _each_us(work: Callable[[], object], each: int, rounds: int) -> tuple[float, tuple[float, float], float]:
    """CPU time: median of rounds with its interval, and the fastest, for who else computes is felt in the cache."""
    spent = []
    for _ in range(rounds + 1):
        begun = time.thread_time()
        work()
        spent.append((time.thread_time() - begun) / each * 1e6)
    median, interval = median_interval(spent[1:])
    return median, interval, min(spent)


def _median(name: str, spent_us: FloatArray, where: str) -> Row:
    """spent_us: [rounds, steps] of a token each. Beside it the least of each step: whatever else the machine does adds to it."""
    value, interval = median_interval(spent_us.mean(axis=1))
    note = (
        f"{where}; median of {len(spent_us)} rounds; the least of them, step by step, {spent_us.min(axis=0).mean():.2f}"
    )
    return Row(name, value, interval=interval, note=note)


def _update(circuits: Circuits, slices: int, of: str, rounds: int) -> Iterator[Row]:
    """As it is live: a step is read, and what was read is counted. The goal is of eight nodes."""
    own = Bank(circuits, routes(slices))
    reader, sketch = Reader(own), LiveSketch(own, "a", TICK_S)
    steps = _steps(own, 20)
    spent_us = np.empty((2, rounds + 1, len(steps)))  # reading, counting
    for number, at in np.ndindex(spent_us.shape[1:]):
        times = [time.thread_time_ns()]
        activity = reader.read(steps[at])
        times.append(time.thread_time_ns())
        sketch.add(activity)
        times.append(time.thread_time_ns())
        spent_us[:, number, at] = np.diff(times) / 1e3 / BATCH
    reading, counting = spent_us[:, 1:]
    update = _median(f"sketch update, us per sampled token, {of}", counting, _where(circuits))
    yield update if of.endswith("shipped") else update.at_most(1.5)
    yield _median(f"readings to activities, us per sampled token, {of}", reading, _where(circuits))


def _whole(circuits: Circuits, slices: int, which: str, life: int, rounds: int) -> Row:
    """All that follows a reply: whose tokens they are, activities, counts, bets and their traces. The table of sessions is full."""
    made = Monitored(plan(circuits, slices), slices, sessions=4 * BATCH)
    made.traffic(16 * TOKENS, TOKENS)
    spent_us = np.empty((rounds, 20))
    for number in range(rounds):
        for at, (read, batch) in enumerate(made.steps(20, life)):
            begun = time.thread_time_ns()
            made.monitor.account(read, batch)
            spent_us[number, at] = (time.thread_time_ns() - begun) / 1e3 / BATCH
    return _median(f"a sampled token in all, us, {which}", spent_us, _where(circuits))


def _sessions(rounds: int) -> Iterator[Row]:
    """Steps of a token each of 64 sessions, on one of two replicas, with a table that is full."""
    yield _noting("every row a new session, one evicted for each", 1, rounds)
    yield _noting("each until it has bet", TOKENS, rounds)
    yield _noting("most of them have bet", 32 * TOKENS, rounds)


def _noting(which: str, life: int, rounds: int) -> Row:
    """life: steps for which the same sessions go on."""
    own = Bank(directions())
    sessions = Sessions(own, Share(0, 2, b"key"), limit=4 * BATCH)
    read = [Reader(own).read(one) for one in _steps(own, 4)]
    numbers = itertools.count()

    def named() -> Activity:
        number = next(numbers)
        names = tuple(f"session {number // life} {at:056}" for at in range(BATCH))  # as long as a hash
        return replace(read[number % len(read)], session_ids=names)

    def steps() -> list[Activity]:
        return [named() for _ in range(4 * life)]

    for one in itertools.chain.from_iterable(steps() for _ in range(4)):
        sessions.take(one, 0)
    spent = []
    for _ in range(max(3, rounds // 4)):
        coming = steps()
        begun = time.thread_time()
        for one in coming:
            sessions.take(one, 0)
        spent.append((time.thread_time() - begun) / len(coming) / BATCH * 1e6)
    median, interval = median_interval(spent)
    note = f"{BATCH} rows a step, of as many sessions; on one of two replicas; fastest round {min(spent):.2f}"
    return Row(f"noting a session's token, us, {which}", median, interval=interval, note=note)


def _detector(rounds: int) -> Row:
    many = 256
    counts = stream(AR1, 60, np.random.default_rng(0), streams=many)
    table = np.repeat(betting_table([Band(0.25, 0.35)], 4), many, axis=0)

    def run() -> None:
        log_m = np.full((many, BETS), NOTHING)
        for tick in range(60):
            log_m = advance(log_m, counts[:, tick], table)
            log_e(log_m)

    median, interval, fastest = _each_us(run, 60 * many, max(3, rounds // 10))
    return Row(
        "detector, us per circuit-slice and tick",
        median,
        interval=interval,
        note=f"{many} at once; fastest {fastest:.2f}",
    )


def _peers(rounds: int) -> Iterator[Row]:
    sound = tick_means(stream(AR1, 3 * DAY, np.random.default_rng(0))[0])
    for name, peer in PEERS.items():
        values = sound[: 200 if peer.months < 5 else 2000].tolist()
        detector = peer.learn(sound)()

        def run(detector: object = detector, values: list[float] = values) -> None:
            for value in values:
                detector.update(value)  # type: ignore[attr-defined]

        median, interval, fastest = _each_us(run, len(values), max(2, rounds // 4))
        size = len(pickle.dumps(detector))
        note = f"one stream; its state is {size:,} bytes pickled; fastest {fastest:.2f}"
        yield Row(f"{name}, us per update", median, interval=interval, note=note)


def _merges(count: int) -> Row:
    """Random shardings of sessions over 2 to 5 replicas, merged in random order and grouping: equal to one sketch over all?"""
    own, rng = Bank(directions(), routes(8)), np.random.default_rng(0)
    steps = _steps(own, 2 * TOKENS, mixed=True)
    whole = _sketched(own, steps, "all")
    bets = sum(int(row.evidence.sum()) for row in whole)
    if not bets:
        raise RuntimeError("no session has bet: that its evidence is merged is not shown")
    wanted, same = _bits(whole), 0
    for _ in range(count):
        owner = rng.integers(0, int(rng.integers(2, 6)), BATCH)
        parts = []
        for mine in np.unique(owner).tolist():
            parts += _sketched(own, [_of(one, owner == mine) for one in steps], str(mine))
        rng.shuffle(parts)
        middle = int(rng.integers(0, len(parts) + 1))
        same += _bits([*merge(parts[:middle]).rows, *merge(parts[middle:]).rows]) == wanted
    note = f"of {count}; in each {bets:,} bets, in two ticks"
    return replace(Row("random shardings that merge to the same bits", same).at_least(count), note=note)


def _of(rows: Rows, mine: np.ndarray) -> Rows:
    at = np.flatnonzero(mine[rows.sessions])
    return Rows(rows.readings[at], rows.positions[at], rows.slices[at], rows.sessions[at], rows.session_ids)


def _sketched(own: Bank, steps: list[Rows], source: str) -> list[TickRow]:
    """Two ticks of them."""
    live, sessions, reader = LiveSketch(own, source, TICK_S), Sessions(own, Share(), limit=BATCH), Reader(own)
    made: list[TickRow] = []
    for tick, some in enumerate((steps[: len(steps) // 2], steps[len(steps) // 2 :])):
        for one in some:
            activity = reader.read(one)
            live.add(activity)
            live.bet(sessions.take(activity, tick))
        made += live.close(tick)
    return made


def _bits(rows: list[TickRow]) -> list[tuple[object, bytes]]:
    return [(row.key, row.counts.tobytes()) for row in merge(rows).rows]
