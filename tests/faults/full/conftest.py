from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.faults.full import results
from tests.faults.full.results import Row
from tests.faults.full.scale import FULL
from tests.service_fixtures import artifacts, home

__all__ = ["artifacts", "home", "record"]

_HERE = Path(__file__).parent
_ROWS: list[Row] = []
NO_GOALS: Mapping[str, bool] = MappingProxyType({})
Record = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.overload)


@pytest.fixture
def record() -> Record:
    """Call it when everything held: fault, load, outcome and numbers become a row of the table.

    goals: by their words, whether they were reached. One that was not does not fail the test: it is told.
    """
    begun_s = time.monotonic()

    def add(fault: str, load: str, outcome: str, goals: Mapping[str, bool] = NO_GOALS, **numbers: float) -> None:
        missed = tuple(goal for goal, reached in goals.items() if not reached)
        row = Row(fault, load, time.monotonic() - begun_s, outcome, numbers, missed)
        _ROWS.append(row)
        print(row)

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only a full run of everything, in which everything held, is worth keeping."""
    whole = not session.config.option.keyword and all(Path(one).resolve() == _HERE for one in session.config.args)
    if FULL and whole and _ROWS and session.exitstatus == pytest.ExitCode.OK:
        results.write(_ROWS)
