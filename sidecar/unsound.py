"""Files that cannot be read: commands refuse them by name, or are told to pass over them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence


def add_skip(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--skip-unsound",
        action="store_true",
        help="pass over files that cannot be read; each is named with its reason, and they are counted",
    )


def passed_over(unsound: Sequence[str]) -> Iterator[str]:
    """Lines for a terminal: what was said does not rest on these."""
    if unsound:
        yield f"{len(unsound)} unsound file{'s' if len(unsound) > 1 else ''} passed over:"
    yield from (f"  {one}" for one in unsound)
