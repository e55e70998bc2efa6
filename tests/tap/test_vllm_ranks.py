"""Processes that must do the same or nothing: over a real store of torch's, each from a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import TCPStore

from sidecar.tap.faults import TapRefusedError
from sidecar.tap.vllm.ranks import Ranks, agree
from sidecar.tap.vllm.sites import NotHereError
from sidecar.types import Site, TapPoint

SIZE = 3
POINTS = (TapPoint(2), TapPoint(5, Site.MLP_OUT))
SOON_S = 0.2


@pytest.fixture
def ranks() -> list[Ranks]:
    """Every one with a connection of its own."""
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [host, *(TCPStore("127.0.0.1", host.port) for _ in range(SIZE - 1))]
    return [Ranks(rank, SIZE, store) for rank, store in enumerate(stores)]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each of them returned or raised."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (TapRefusedError, NotHereError) as why:
            return why

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def test_each_hears_what_all_say_on_a_topic_and_nothing_of_another(ranks: list[Ranks]) -> None:
    for topic in ("one", "two"):
        words = [f"{topic} {rank}" if rank else "" for rank in range(SIZE)]
        assert (
            at_once(*(partial(rank.hear, topic, word) for rank, word in zip(ranks, words, strict=True)))
            == [words] * SIZE
        )


def test_without_one_of_them_all_refuse_and_so_does_it_when_it_comes_after_all(ranks: list[Ranks]) -> None:
    first = at_once(*(partial(rank.hear, "topic", "", SOON_S) for rank in ranks[:-1]))
    (late,) = at_once(partial(ranks[-1].hear, "topic", "", SOON_S))
    told = "not all 3 ranks of the model have the tap, or not within 0.2 s"
    assert [(type(one), str(one)) for one in [*first, late]] == [(TapRefusedError, told)] * SIZE


def test_patience_that_ends_while_the_last_one_comes_ends_the_same_for_all(ranks: list[Ranks]) -> None:
    """The race itself, many times: never do some go and others not."""
    outcomes = set()
    for number in range(30):
        calls = [partial(rank.hear, f"{number}", "x", 0.0 if rank.rank else 0.002) for rank in ranks]
        came = {type(one) for one in at_once(*calls)}
        assert len(came) == 1
        outcomes |= came
    assert outcomes <= {list, TapRefusedError}


def test_all_take_the_tap_points_of_the_first(ranks: list[Ranks]) -> None:
    chosen = [POINTS, (), (TapPoint(9),)]
    calls = [partial(agree, rank, partial(tuple, mine)) for rank, mine in zip(ranks, chosen, strict=True)]
    assert at_once(*calls) == [POINTS] * SIZE


@pytest.mark.parametrize("which", range(SIZE))
def test_what_one_has_against_it_is_refused_by_all_and_each_says_whose_it_is(ranks: list[Ranks], which: int) -> None:
    def choose(rank: int) -> tuple[TapPoint, ...]:
        if rank == which:
            raise NotHereError("blocks.9.resid_post: not here")
        return POINTS

    outcomes = at_once(*(partial(agree, rank, partial(choose, rank.rank)) for rank in ranks))
    why = "blocks.9.resid_post: not here"
    assert [str(one) for one in outcomes] == [
        why if rank == which else f"rank {which} is not tapped: {why}" for rank in range(SIZE)
    ]


def test_who_is_alone_asks_nobody() -> None:
    alone = Ranks.of(SimpleNamespace(rank_in_group=0, world_size=1))
    assert agree(alone, lambda: POINTS) == POINTS
    with pytest.raises(NotHereError, match="no such block"):
        agree(alone, _refused)


def _refused() -> tuple[TapPoint, ...]:
    raise NotHereError("no such block")
