"""Whether an engine that loads plugins gets a tap: ``STETHOSCOPE_TAP``. Until it does, nothing more of ours is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from sidecar.tap.wish import Wish

VARIABLE = "STETHOSCOPE_TAP"
_OFF = ("", "0", "off")


def is_on() -> bool:
    """Whether anything is wanted in this process."""
    return os.environ.get(VARIABLE, "").strip() not in _OFF


def switch_on(put: Callable[[Wish], None], engine: str, log: logging.Logger) -> None:
    """Have ``put`` put in what the environment asks for. Raises nothing: what stands in the way is told, and the engine goes on.

    engine: its name, for people. A setting that makes no sense, or a TapRefusedError of ``put``, is told in one line.
    """
    from sidecar.tap.faults import TapRefusedError

    try:
        from sidecar.tap.wish import wish_from_environment

        put(wish_from_environment())
    except TapRefusedError as why:
        log.error("not_tapped: %s; %s goes on as it is", why, engine)  # noqa: TRY400 - a limit or a setting, no bug
    except Exception:
        log.exception("not_tapped: %s goes on as it is", engine)
