"""A file that was written under another name gets its own: whole, on the disk, and never in the place of another."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def publish(temporary: Path, path: Path) -> None:
    """Give ``temporary``, in the folder of ``path``, that name as well: content and name then outlive a power loss.

    Raises FileExistsError if there is such a file, OSError if the disk does not take it.
    """
    _sync(temporary)  # before it has its name: a name without content is what a power loss would leave
    os.link(temporary, path)  # unlike a rename, it never takes the place of another file
    try:
        _sync(path.parent)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no folders, as some of networks do
            raise


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
