"""What the sidecar advises about a request, as the engine's side hears it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from sidecar.types import Action

log = logging.getLogger("stethoscope.tap")


# Request (the id as it went on the wire: ``Request.wire_id``), advice, names of the signals over their thresholds.
OnVerdict: TypeAlias = Callable[[str, Action, tuple[str, ...]], None]


class Listeners:
    """Those who are told. fail: called for each of their exceptions; the first goes to the log."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self._fail = fail
        self._listeners: tuple[OnVerdict, ...] = ()
        self._failed = False

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, listener: OnVerdict) -> None:
        self._listeners = (*self._listeners, listener)

    def tell(self, request_id: str, action: Action, signals: tuple[str, ...]) -> None:
        for listener in self._listeners:
            try:
                listener(request_id, action, signals)
            except Exception as error:  # noqa: BLE001 - an answer is an answer, whatever a listener makes of it
                self._note(error)

    def _note(self, error: Exception) -> None:
        self._fail()
        if not self._failed:
            self._failed = True
            log.error("verdict_listener_failed", exc_info=error)
