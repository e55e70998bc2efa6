"""The rows of requests that are put together as they come, and everything that can be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sidecar.errors import OtherModelError
from sidecar.record.recording import Outcome, Recording, Wanted
from sidecar.record.rows import Gap, NeverWholeError, Recorded
from sidecar.recorded import Origin, RecordedError
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    ModelIdentity,
    Phase,
    RequestId,
    Segments,
    StepBatch,
    TapLedgerCounts,
    TapPoint,
    TapTensor,
    TrafficReport,
    UnseenReason,
)

ENGINE, MODEL, WIDTH = EngineId("e"), ModelIdentity("m", "A", 4, 8), 8
POINTS = (TapPoint(1), TapPoint(2))


class Everything:
    """Wants all requests; the length of ``lengths`` for a name, else whatever comes."""

    def __init__(self, **lengths: int) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._lengths = lengths

    def choose(self, request: RequestId) -> Wanted | None:
        return None if request in self.outcomes else Wanted(request, self._lengths.get(request, 0))

    def settled(self, wanted: Wanted, outcome: Outcome) -> None:
        assert wanted.name not in self.outcomes
        self.outcomes[wanted.name] = outcome


def recording(requests: Everything, held_bytes: int = 1 << 20) -> Recording:
    made = Recording(POINTS, requests, lambda _: None, held_bytes)
    made.register(ENGINE, MODEL)
    assert made.opened(ENGINE)
    return made


def states(rows: int, seed: int = 0, width: int = WIDTH, dtype: type = np.float32) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(dtype)


def batch(
    names: Sequence[str],
    positions: Sequence[Sequence[int]],
    *tensors: Any,
    points: Sequence[TapPoint] = POINTS,
    prompt_tokens: int = 0,
    finished: Sequence[str] = (),
    adapters: tuple[str, ...] = (),
) -> StepBatch:
    """tensors: of each point, [all rows, width]."""
    rows = np.array([len(one) for one in positions], np.intp)
    table = Segments(
        tuple(map(RequestId, names)),
        np.cumsum(rows) - rows,
        rows,
        np.concatenate([np.asarray(one, np.uint32) for one in positions]),
        np.full(len(names), Phase.PREFILL, np.int8),
        np.full(len(names), prompt_tokens, np.intp),
        adapters=adapters,
    )
    kinds = {"float32": ElementType.F32, "float16": ElementType.F16}
    taps = tuple(TapTensor(point, kinds[one.dtype.name], one) for point, one in zip(points, tensors, strict=True))
    return StepBatch(BatchId("b"), ENGINE, 0, 0, 1, table, taps, tuple(map(RequestId, finished)))


def test_rows_that_come_in_pieces_and_among_others_are_put_together_by_position() -> None:
    requests = Everything(a=4)
    made = recording(requests)
    one, two = states(4, 1), states(4, 2)
    other = states(2, 3)
    made.batch(batch(["a", "b"], [[0, 1], [0]], np.vstack([one[:2], other[:1]]), np.vstack([two[:2], other[1:]])), {})
    assert requests.outcomes == {}
    made.batch(batch(["a"], [[2, 3]], one[2:], two[2:], prompt_tokens=4, finished=["b"]), {})
    a, b = requests.outcomes["a"], requests.outcomes["b"]
    assert isinstance(a, Recorded)
    assert isinstance(b, Recorded)
    np.testing.assert_array_equal(a.bits.view("<f4"), np.stack([one, two], axis=1))
    np.testing.assert_array_equal(b.bits.view("<f4")[0], other)
    made.finished(ENGINE, [RequestId("a")])
    assert isinstance(requests.outcomes["a"], Recorded), "its end, which comes later, changes nothing"


def test_what_the_tap_says_of_missing_tokens_is_in_the_gap() -> None:
    requests = Everything(a=5)
    made = recording(requests)
    told = {0: {UnseenReason.PREFIX_CACHE: 2, UnseenReason.TAP_DROPPED: 1}}
    made.batch(batch(["a"], [[3, 4]], states(2), states(2), prompt_tokens=5), told)
    made.finished(ENGINE, [RequestId("a")])
    assert requests.outcomes == {"a": Gap("3 of 5 tokens have no rows: 2 prefix_cache, 1 tap_dropped")}


def test_a_request_of_which_only_the_end_came_has_a_gap() -> None:
    requests = Everything()
    recording(requests).finished(ENGINE, [RequestId("a")])
    assert requests.outcomes == {"a": Gap("its end came, and none of its rows")}


def test_a_prompt_of_another_length_than_was_asked_is_no_recording() -> None:
    requests = Everything(a=2)
    recording(requests).batch(batch(["a"], [[0, 1, 2]], states(3), states(3), prompt_tokens=3), {})
    assert requests.outcomes == {"a": Gap("the engine read a prompt of 3 tokens, not of 2")}


def test_a_state_that_is_no_number_is_a_gap() -> None:
    requests = Everything(a=3)
    broken = states(3)
    broken[1, 2] = np.nan
    recording(requests).batch(batch(["a"], [[0, 1, 2]], states(3), broken), {})
    assert requests.outcomes == {"a": Gap("a state at position 1 is no finite number")}


@pytest.mark.parametrize(
    ("tensors", "how", "words"),
    [
        ((states(2),), {"points": POINTS[:1]}, "does not capture blocks.2.resid_post: start it with STETHOSCOPE_TAP="),
        ((states(2), states(2, width=4)), {}, "4 columns of f32, 8 columns of f32: record them apart"),
        ((states(2), states(2, dtype=np.float16)), {}, "8 columns of f16, 8 columns of f32"),
        ((states(2), states(2)), {"adapters": ("lora",)}, "an adapter is applied"),
    ],
)
def test_what_asking_again_would_not_change_is_told_apart(tensors: Any, how: Any, words: str) -> None:
    requests = Everything(a=2)
    made = recording(requests)
    made.batch(batch(["a"], [[0, 1]], *tensors, **how), {})
    made.finished(ENGINE, [RequestId("a")])
    outcome = requests.outcomes["a"]
    assert isinstance(outcome, NeverWholeError)
    assert words in str(outcome)


def test_beyond_what_may_be_held_the_oldest_request_is_given_up() -> None:
    requests = Everything()
    made = recording(requests, held_bytes=3 * len(POINTS) * WIDTH * 4)
    made.batch(batch(["a", "b"], [[0], [0]], states(2), states(2)), {})
    assert requests.outcomes == {}
    made.batch(batch(["b"], [[1, 2]], states(2), states(2)), {})
    assert list(requests.outcomes) == ["a"]
    gap = requests.outcomes["a"]
    assert isinstance(gap, Gap)
    assert "--held-mib" in gap.why
    made.batch(batch(["a"], [[1]], states(1), states(1), finished=["a", "b"]), {})
    assert isinstance(requests.outcomes["b"], Recorded)


def test_an_engine_that_goes_away_leaves_gaps_and_one_that_never_registered_is_not_heard() -> None:
    requests = Everything()
    made = recording(requests)
    made.batch(batch(["a"], [[0]], states(1), states(1)), {})
    made.closed(ENGINE)
    assert requests.outcomes == {"a": Gap("the engine went away before its end")}
    assert not made.opened(EngineId("stranger"))


def test_an_engine_of_another_identity_is_refused_and_the_first_one_goes_on() -> None:
    requests = Everything(a=1)
    made = recording(requests)
    with pytest.raises(OtherModelError):
        made.register(EngineId("other"), ModelIdentity("m", "A", 4, 8, dtype="float16"))
    assert made.refused == ""
    made.batch(batch(["a"], [[0]], states(1), states(1)), {})
    assert isinstance(requests.outcomes["a"], Recorded)


def test_an_engine_whose_states_do_not_belong_there_is_why_nothing_is_recorded() -> None:
    def refuse(_: Origin) -> None:
        raise RecordedError("of something else")

    made = Recording(POINTS, Everything(), refuse, 1)
    with pytest.raises(OtherModelError):
        made.register(ENGINE, MODEL)
    assert made.refused == "of something else"
    assert made.wait_for_engine(0.0)


def test_what_a_tap_dropped_before_it_came_is_not_counted() -> None:
    made = recording(Everything())
    for dropped in (7, 7, 12):
        unseen = ((UnseenReason.TAP_DROPPED, dropped),)
        made.report(TrafficReport(ENGINE, 1, 100, unseen, 1, TapLedgerCounts()))
    assert made.dropped == 5
