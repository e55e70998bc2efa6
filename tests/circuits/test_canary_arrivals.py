"""Of a round's rows the first counts, none of anybody else's does, and no more are kept than a round has."""

from __future__ import annotations

import numpy as np

from sidecar.live.canary_arrivals import Arrivals, Unused
from sidecar.live.canary_prompts import MOST
from sidecar.live.canary_rows import LAST, CanaryRow


def row(name: str, offset: int = -1, value: float = 0.0, generation: int = 1) -> CanaryRow:
    return CanaryRow(generation, name, offset, np.full(3, value, np.float32))


def test_the_first_row_of_a_token_is_the_rounds_and_those_after_it_are_counted() -> None:
    arrivals = Arrivals()
    arrivals.begin(generation=1, prompts=2)
    arrivals.add([row("canary-0", -2, 1.0), row("canary-0", -1, 2.0), row("canary-0", -1, 9.0)])
    assert arrivals.prompts == 1
    arrivals.add([row("canary-1", -1, 3.0), row("canary-1", -1, 9.0)])
    assert arrivals.prompts == 2
    assert [float(one.values[0]) for one in arrivals.end()] == [1.0, 2.0, 3.0]
    assert arrivals.unused == {Unused.NO_ROUND: 0, Unused.REPEATED: 2, Unused.UNKNOWN: 0}


def test_rows_before_and_after_a_round_are_in_none() -> None:
    arrivals = Arrivals()
    arrivals.add([row("canary-0")])
    arrivals.begin(generation=1, prompts=1)
    assert arrivals.prompts == 0
    assert arrivals.end() == []
    arrivals.add([row("canary-0"), row("canary-1")])
    assert arrivals.unused[Unused.NO_ROUND] == 3
    assert arrivals.end() == []


def test_a_row_of_another_prompt_another_place_or_another_plan_is_not_the_rounds() -> None:
    arrivals = Arrivals()
    arrivals.begin(generation=1, prompts=2)
    strange = [row("canary-2"), row("canary-00"), row("chat"), row("canary-0", 0), row("canary-0", -LAST - 1)]
    arrivals.add([*strange, row("canary-0", generation=2)])
    assert arrivals.unused[Unused.UNKNOWN] == 6
    assert arrivals.end() == []


def test_whatever_comes_no_more_is_kept_than_a_round_has() -> None:
    arrivals = Arrivals()
    arrivals.begin(generation=1, prompts=MOST)
    for _ in range(3):
        arrivals.add([row(f"canary-{number}", -at) for number in range(2 * MOST) for at in range(2 * LAST)])
    assert len(arrivals.end()) == MOST * LAST == 1024
