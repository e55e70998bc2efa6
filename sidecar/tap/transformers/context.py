"""Which requests the calling code is working for, carried by context variables: through threads, tasks and generators."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from sidecar.tap.step import RequestInfo


@dataclass(frozen=True, slots=True)
class Caller:
    """What an HTTP request tells about itself before anybody gives it an id."""

    traceparent: str = ""
    route: str = ""
    session_id_hash: str = ""
    canary: bool = False

    @property
    def told(self) -> bool:
        """Whether it says anything at all."""
        return self != _NOBODY

    def info(self, request_id: str) -> RequestInfo:
        return RequestInfo(
            request_id, self.traceparent, self.route, session_id_hash=self.session_id_hash, canary=self.canary
        )


_NOBODY = Caller()


# The rows of the next batch, in order; empty: they get ids of their own.
ROWS: ContextVar[tuple[RequestInfo, ...]] = ContextVar("stethoscope_rows", default=())
CALLER: ContextVar[Caller] = ContextVar("stethoscope_caller", default=Caller())  # noqa: B039 - frozen
