"""A caller that waits, and a whole sidecar: it advises by its policy while it can, and is not waited for when it cannot."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from sidecar.ask import Asker, DecidedBy
from sidecar.types import Action
from tests.builders import WIDTH, wire_batch
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder, write_artifacts

pytestmark = pytest.mark.process
LONG_S, SHORT_S, RECOVERY_S = 10.0, 0.25, 5.0


def batch(**axes: int):
    """A request of two rows for each that is named; it reads high on the axis given (of -1: on none)."""
    rows = np.zeros((2 * len(axes), WIDTH), dtype=np.float32)
    for number, axis in enumerate(axes.values()):
        if axis >= 0:
            rows[2 * number : 2 * number + 2, axis] = 10.0
    return wire_batch(rows, [(name, (0, 1)) for name in axes])


@pytest.fixture(scope="module")
def served() -> Iterator[Process]:
    """Signal "first" blocks, "second" escalates."""
    with private_folder() as home:
        flags = ("--set", "verdicts.signals={first: block, second: escalate}", "--set", "coverage.report_s=1000000")
        with Process(home, write_artifacts(home), *flags) as process, Client(process) as client:
            client.register()
            client.good()
            yield process


@pytest.fixture
def asker(served: Process) -> Iterator[Asker]:
    with Asker(served.address, at_deadline="block") as made:
        yield made


def test_the_policys_actions_come_back_with_the_names_of_all_that_was_read(asker):
    answer = asker.ask(batch(calm=-1, bad=0, odd=1), LONG_S)
    assert (answer.decided_by, answer.why) == (DecidedBy.SIDECAR, "")
    actions = {name: advice.action for name, advice in answer.verdicts.items()}
    assert actions == {"calm": Action.ALLOW, "bad": Action.BLOCK, "odd": Action.ESCALATE}
    assert [one.name for one in answer.verdicts["bad"].signals] == ["first"]
    assert answer.verdicts["bad"].signals[0].score > 0.99
    for advice in answer.verdicts.values():
        assert (set(advice.read), advice.skipped, advice.late) == ({"first", "second"}, (), ())


def test_a_batch_that_the_sidecar_refuses_is_told_and_answered(asker):
    answer = asker.ask(wire_batch(engine_id="nobody"), LONG_S)
    assert answer.verdicts["req-0"].action is Action.BLOCK
    assert answer.why == "INVALID_ARGUMENT: unknown_engine"
    assert (asker.refused, asker.late) == (1, 0)


@pytest.mark.parametrize("part", ["the worker", "all of it"])
def test_a_frozen_sidecar_is_not_waited_for_and_answers_again_when_it_goes_on(served, asker, part):
    process = psutil.Process(served.pid)
    frozen = process.children(recursive=True) + ([process] if part == "all of it" else [])
    assert frozen
    assert asker.ask(batch(calm=-1), LONG_S).decided_by is DecidedBy.SIDECAR
    for one in frozen:
        one.send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        answer = asker.ask(batch(calm=-1), SHORT_S)
        took_s = time.monotonic() - start
    finally:
        for one in frozen:
            one.send_signal(signal.SIGCONT)
    assert answer.verdicts["calm"].action is Action.BLOCK
    assert answer.decided_by is DecidedBy.DEADLINE
    assert took_s < 5 * SHORT_S
    assert asker.ask(batch(calm=-1), RECOVERY_S).decided_by is DecidedBy.SIDECAR
    assert (asker.asked, asker.decided, asker.late) == (3, 2, 1)
