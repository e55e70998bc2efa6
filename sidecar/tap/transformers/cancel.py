"""Blocked requests of continuous batching: cancelled by their own manager, and answered with what they have."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from typing import Any

from sidecar.tap.faults import Faults, Unsupported
from sidecar.tap.step import Request, wire_id
from sidecar.tap.transformers.stops import Stops


class Cancels:
    """One per tapped model.

    Read in transformers 5.23: ``cancel_request`` is for callers that have gone, so nobody is told, and a caller that waits
    would wait for ever. A request that is cancelled here still has its caller: it gets a finished answer.
    """

    def __init__(self, stops: Stops, faults: Faults) -> None:
        self._stops = stops
        self._faults = faults
        self._manager: weakref.ref[Any] | None = None
        self._ordered: dict[str, None] = {}  # cancelled on our order, and not yet gone

    def managed(self, manager: Any) -> None:
        """Who takes the model's requests and can cancel them. Called on the caller's thread."""
        if self._manager is None or self._manager() is not manager:
            self._manager = weakref.ref(manager)

    def heed(self, request: Request, request_id: str) -> None:
        """It can be blocked from now on. ``request_id`` is the engine's own name for it."""
        self._ordered.pop(request_id, None)
        if request.chosen:  # nobody judges the others
            self._stops.heed(request.wire_id, partial(self._cancel, request_id))

    def forget(self, request: Request, request_id: str) -> None:
        """It has ended."""
        self._ordered.pop(request_id, None)
        self._stops.forget(request.wire_id)

    def _cancel(self, request_id: str) -> None:
        """All ranks of a tensor-parallel model follow their manager. Called on the client's thread."""
        manager = None if self._manager is None else self._manager()
        if manager is None:
            self._faults.note("block", Unsupported("a block of a request that was added before the tap"))
            return
        self._ordered[request_id] = None
        manager.cancel_request(request_id)

    def dropped(self, state: Any) -> None:
        """The scheduler has dropped a cancelled request. Called on the engine's thread, between two steps."""
        manager = None if self._manager is None else self._manager()
        if manager is None or state.request_id not in self._ordered:
            return  # its caller has cancelled it
        self._stops.book(wire_id(state.request_id))
        state.status = _finished()  # with batches in flight, the engine would else go on writing to it
        answer = state.to_generation_output()
        unborn = [f"{state.request_id}__child#{number}" for number in range(state.num_children)]
        for name in (state.request_id, *unborn):  # sequences that it was to be forked into are waited for too
            manager.output_router.deliver(replace(answer, request_id=name))


def _finished() -> Any:
    from transformers.generation.continuous_batching.requests import RequestStatus

    return RequestStatus.FINISHED
