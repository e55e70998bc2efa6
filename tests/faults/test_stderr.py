"""The log has one form: what libraries, warnings and dying threads would print becomes lines of it."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator

import pytest

from sidecar.clock import ManualClock
from sidecar.log import Level, LibraryLog, Log
from sidecar.run import own_stderr


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of a log that owns stderr; afterwards everything is as it was."""
    root, hook, handlers = logging.getLogger(), threading.excepthook, list(logging.getLogger().handlers)
    written: list[str] = []
    own_stderr(Log(ManualClock(), write=written.append))
    yield written
    logging.captureWarnings(capture=False)
    threading.excepthook = hook
    for added in set(root.handlers) - set(handlers):
        root.removeHandler(added)


def test_a_warning_of_a_library_is_one_line_of_ours(lines):
    logging.getLogger("some.library").warning("lost %d things\nand more", 3)
    logging.getLogger("some.library").info("nobody asked")
    (told,) = map(json.loads, lines)
    assert (told["level"], told["event"], told["logger"]) == ("warning", "library", "some.library")
    assert told["text"] == "lost 3 things\nand more"
    assert "\n" not in lines[0]


def test_an_exception_of_a_library_tells_its_kind_and_no_traceback(lines):
    try:
        raise KeyError("where")
    except KeyError:
        logging.getLogger("some.library").exception("failed")
    (told,) = map(json.loads, lines)
    assert (told["level"], told["text"]) == ("error", "failed: KeyError")


def test_a_message_whose_arguments_do_not_fit_is_told_as_it_stands():
    written: list[str] = []
    record = logging.LogRecord("some.library", logging.WARNING, "file.py", 1, "%d things", ("many",), None)
    LibraryLog(Log(ManualClock(), write=written.append)).emit(record)
    assert json.loads(written[0])["text"] == "%d things"


def test_a_python_warning_is_one_line(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for capture in (False, True):  # anew: the test's own context of warnings has taken the fixture's place
            logging.captureWarnings(capture)
        warnings.warn("overflow somewhere", RuntimeWarning, stacklevel=1)
    (told,) = map(json.loads, lines)
    assert "overflow somewhere" in told["text"]


def test_a_thread_that_dies_is_one_line(lines):
    def die() -> None:
        raise ValueError("because")

    thread = threading.Thread(target=die, name="doomed")
    thread.start()
    thread.join(10)
    (told,) = map(json.loads, lines)
    assert (told["event"], told["thread"], told["type"], told["text"]) == (
        "thread_died",
        "doomed",
        "ValueError",
        "because",
    )


def test_a_flood_of_a_library_is_a_few_lines(lines):
    for _ in range(1000):
        logging.getLogger("some.library").error("again")
    assert len(lines) == 10


def test_a_message_that_cannot_be_written_is_counted_and_nobody_is_told():
    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    log = Log(ManualClock(), write=full)
    log.event(Level.ERROR, "anything")
    assert log.suppressed == 1
