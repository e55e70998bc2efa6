"""What went wrong inside the tap: counted, logged once per kind, and kept away from the model."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("stethoscope.tap")


class Unsupported(Exception):  # noqa: N818 - an outcome, not an error of ours
    """The tap cannot tell whose rows these are: count the step's tokens, capture nothing."""


class TapRefusedError(Exception):
    """This engine is not tapped, and serves on; the text says why, for people."""


class Faults:
    """Counts by kind. Kinds are our own words, so there are few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def note(self, kind: str, error: Exception) -> None:
        """Count, and log the first of its kind: with the traceback if it is a bug, in one line if it is a limit."""
        if isinstance(error, Unsupported):
            kind = str(error)
        with self._lock:
            count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count > 1:
            return
        if isinstance(error, Unsupported):
            log.warning("not_captured reason=%r", kind)
        else:
            log.error("tap_error where=%s: the model is not affected, the step is not captured", kind, exc_info=error)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
