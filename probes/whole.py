"""A folder that takes long to make: made once, by one process, and there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = "stethoscope.json"


def whole_folder(target: Path, source: str, make: Callable[[Path], None]) -> Path:
    """Return ``target``, having ``make`` fill it first if it is not there, not whole, or made from another ``source``.

    make: called with an empty folder beside the target, which then takes the target's place by a rename. Whoever asks
    meanwhile, in any process, waits. If ``make`` raises, nothing is left behind. source: names what it is made from.
    """
    if not is_whole(target, source):
        with _locked(target):
            if not is_whole(target, source):
                _make(target, source, make)
    return target


def is_whole(target: Path, source: str) -> bool:
    """Compare names and sizes with the marker: enough to see a folder cut short or tampered with, in no time."""
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        if marker["source"] != source:
            return False
        return all((target / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(target: Path, source: str, make: Callable[[Path], None]) -> None:
    for left in target.parent.glob(f".{target.name}.work-*"):  # by a process that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.work-", dir=target.parent))
    try:
        make(work)
        files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        marker = {"source": source, "files": files}
        (work / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        work.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the one lock on making ``target``; the system frees it if this process dies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
