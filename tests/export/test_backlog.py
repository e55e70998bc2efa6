from __future__ import annotations

import threading

from sidecar.export.backlog import Backlog

DEADLINE_S = 10.0


def test_what_finds_no_place_is_refused_and_the_order_is_kept() -> None:
    backlog = Backlog[int](3)
    assert [backlog.put(n) for n in range(5)] == [True, True, True, False, False]
    assert (backlog.take(2, 0.0), backlog.take(2, 0.0), backlog.take(2, 0.0)) == ([0, 1], [2], [])


def test_a_full_batch_wakes_the_taker_before_its_wait_is_over() -> None:
    backlog = Backlog[int](8)
    taken: list[list[int]] = []
    taker = threading.Thread(target=lambda: taken.append(backlog.take(2, 60.0)))
    taker.start()
    backlog.put(1)
    backlog.put(2)
    taker.join(DEADLINE_S)
    assert taken == [[1, 2]]


def test_a_batch_larger_than_the_backlog_is_taken_when_the_backlog_is_full() -> None:
    backlog = Backlog[int](2)
    taken: list[list[int]] = []
    taker = threading.Thread(target=lambda: taken.append(backlog.take(512, 60.0)))
    taker.start()
    while not backlog.put(1) or not backlog.put(2):
        taker.join(0.01)
    taker.join(DEADLINE_S)
    assert taken
    assert len(taken[0]) == 2


def test_closing_wakes_the_taker_and_keeps_what_is_there() -> None:
    backlog = Backlog[int](8)
    backlog.put(1)
    taken: list[list[int]] = []
    taker = threading.Thread(target=lambda: taken.append(backlog.take(4, 60.0)))
    taker.start()
    backlog.close()
    taker.join(DEADLINE_S)
    assert taken == [[1]]
    assert not backlog.put(2)
    assert backlog.closed


def test_many_threads_lose_and_double_nothing() -> None:
    backlog = Backlog[int](100)
    placed: list[int] = []
    lock = threading.Lock()

    def put(first: int) -> None:
        mine = [n for n in range(first, first + 1000) if backlog.put(n)]
        with lock:
            placed.extend(mine)

    putters = [threading.Thread(target=put, args=(first,)) for first in range(0, 4000, 1000)]
    for putter in putters:
        putter.start()
    taken: list[int] = []
    while any(putter.is_alive() for putter in putters) or len(backlog):
        taken += backlog.take(7, 0.001)
    assert sorted(taken) == sorted(placed)
