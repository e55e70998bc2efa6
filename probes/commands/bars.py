"""Progress bars on standard error: standard output is for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """Shown from the first task on: what ends before it leaves no empty line above its error."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    class Late(Progress):
        def add_task(self, *args: Any, **fields: Any) -> TaskID:
            self.start()
            return super().add_task(*args, **fields)

    shown = Late(console=Console(stderr=True))
    try:
        yield shown
    finally:
        if shown.live.is_started:
            shown.stop()
