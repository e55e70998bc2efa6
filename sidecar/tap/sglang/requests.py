"""SGLang's requests, followed from their first step to their end."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from sidecar.tap.asked import chosen, request_info
from sidecar.tap.recorder import Recorder
from sidecar.tap.step import Request

HEALTH_CHECK = "HEALTH_CHECK"  # how the ids begin of requests that SGLang makes for itself, to see whether it works


class _Open(NamedTuple):
    theirs: weakref.ref[Any]
    ours: Request

    def is_of(self, req: Any) -> bool:
        return self.theirs() is req


class Requests:
    """The requests that have had a step, by id. Owned by the scheduler's thread.

    One that is aborted while it waits to be computed again is told by nobody: it is over when SGLang has forgotten it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open: dict[str, _Open] = {}
        self._forgotten: deque[weakref.ref[Any]] = deque()  # written to by whichever thread collects garbage

    def of(self, req: Any) -> Request:
        """The tap's own of a ``Req``; at its first step it begins."""
        known = self._open.get(req.rid)
        if known is not None and known.is_of(req):
            return known.ours
        if known is not None:
            self._recorder.finish([known.ours])
        opened = self._open[req.rid] = _Open(weakref.ref(req, self._forgotten.append), self._begin(req))
        return opened.ours

    def end(self, reqs: Iterable[Any]) -> None:
        """Those of them that are finished, and those that are forgotten, are over."""
        ended = [one.ours for req in reqs if req.finished() and (one := self._take(req))]
        while self._forgotten:
            gone = self._forgotten.popleft()
            rid = next((rid for rid, one in self._open.items() if one.theirs is gone), None)
            if rid is not None:
                ended.append(self._open.pop(rid).ours)
        self._recorder.finish(ended)

    def _take(self, req: Any) -> _Open | None:
        known = self._open.get(req.rid)
        return self._open.pop(req.rid) if known is not None and known.is_of(req) else None

    def _begin(self, req: Any) -> Request:
        asked = getattr(req.sampling_params, "custom_params", None) or {}
        info = request_info(req.rid, asked, adapter=req.lora_id or "")
        wish = False if req.rid.startswith(HEALTH_CHECK) else chosen(asked)
        return self._recorder.request(info, len(req.origin_input_ids), chosen=wish)
