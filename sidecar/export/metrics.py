"""Snapshots as a page for Prometheus, in the format that the scraper wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sidecar.export.accept import Format, negotiate
from sidecar.export.metric import PREFIX
from sidecar.export.page import Page, Syntax
from sidecar.export.points import READERS, Point, Reader
from sidecar.export.protobuf import Protobuf
from sidecar.export.shared import Shared
from sidecar.export.text import Text
from sidecar.snapshot import Snapshot

_BUILD_INFO = f"{PREFIX}build_info"


class MetricsCollector:
    """Renders the newest snapshot.

    source: gives the snapshot. It is asked once a page, by one thread at a time for each format.
    """

    def __init__(self, source: Callable[[], Snapshot], *, version: str) -> None:
        self._source = source
        self._readers: dict[str, Reader] = {**READERS, _BUILD_INFO: lambda _: (Point((version,), 1),)}
        self._pages = {
            Format.TEXT: self._shared(Text(openmetrics=False)),
            Format.OPENMETRICS: self._shared(Text(openmetrics=True)),
            Format.PROTOBUF: self._shared(Protobuf()),
        }

    def _shared(self, syntax: Syntax) -> Shared[bytes]:
        page = Page(syntax)
        return Shared(lambda: page.render(self._points(self._source())))

    def _points(self, snapshot: Snapshot) -> dict[str, Iterable[Point]]:
        return {name: read(snapshot) for name, read in self._readers.items()}

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, by the scraper's Accept header.

        Threads that ask at the same time share a page, whose snapshot is taken after each of them asked.
        """
        wanted = negotiate(accept)
        return self._pages[wanted].get(), wanted.value
