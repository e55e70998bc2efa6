"""A bug of ours, told twice: its text in the log, and to whoever called a random id to find it by."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable
from pathlib import Path

from google.rpc import code_pb2

from sidecar.ingest.refusal import Refusal
from sidecar.log import Level, Log


def bug_teller(log: Log) -> Callable[[Exception], Refusal]:
    """A function that logs an exception under a random id; the refusal that it returns tells the id and nothing else."""

    def tell(bug: Exception) -> Refusal:
        error_id = secrets.token_hex(8)
        *_, (frame, line) = traceback.walk_tb(bug.__traceback__)
        log.event(
            Level.ERROR,
            "internal_error",
            id=error_id,
            type=type(bug).__name__,
            text=str(bug)[:200],
            at=f"{Path(frame.f_code.co_filename).stem}:{line}",
        )
        return Refusal(code_pb2.INTERNAL, f"internal error {error_id}")

    return tell
