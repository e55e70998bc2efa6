"""Fetches the sidecar's plan when its generation changes, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import grpc

from sidecar.tap import wire
from sidecar.tap.books import Books
from sidecar.tap.plan import FetchedPlan

log = logging.getLogger("stethoscope.tap")

_FETCH_S = 10.0
_PAUSE_S = 0.5  # before another attempt: one that failed, or that met a plan on its way to the next


class PlanFetcher:
    """The plan of one connection to a sidecar: generations are counted anew by a sidecar that restarts.

    fetch: a FetchPlanRequest's bytes to the response's; may raise grpc.RpcError.
    """

    def __init__(self, fetch: Callable[[bytes, float], bytes], books: Books) -> None:
        self._fetch = fetch
        self._books = books
        self._changed = threading.Condition()
        self._wanted = 0  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._thread: threading.Thread | None = None
        self._told = ""
        self.plan: FetchedPlan | None = None  # written by the fetching thread alone

    def want(self, generation: int) -> None:
        """Have this generation soon; the plan that is there stays until then. Returns at once. 0: none is wanted."""
        with self._changed:
            self._wanted = generation
            self._changed.notify_all()
            if self._thread is None and generation and not self._closed:
                self._thread = threading.Thread(target=self._run, name="stethoscope-tap-plan", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread, without waiting for a fetch that is under way. Twice is fine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def _behind(self) -> bool:
        return self._wanted not in (0, 0 if self.plan is None else self.plan.generation)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._behind)
                if self._closed:
                    return
            self._attempt()
            with self._changed:
                if self._behind:
                    self._changed.wait_for(lambda: self._closed, _PAUSE_S)

    def _attempt(self) -> None:
        known = 0 if self.plan is None else self.plan.generation
        try:
            fetched = wire.fetched_plan(self._fetch(wire.plan_request(known), _FETCH_S))
        except grpc.RpcError as error:
            self._tell(f"plan_not_fetched why={error.code().name}")
        except Exception as error:  # noqa: BLE001 - counted; the tap outlives its own bugs and a sidecar's
            if not self._closed:  # whose end takes the channel away
                self._books.fail()
                self._tell("plan_not_read", error)
        else:
            if fetched.generation != known:
                self.plan = fetched
                log.info("plan generation=%d tap_points=%d", fetched.generation, len(fetched.points))

    def _tell(self, event: str, error: Exception | None = None) -> None:
        """Once until it changes: the attempts go on."""
        if event != self._told:
            self._told = event
            log.warning(event, exc_info=error)
