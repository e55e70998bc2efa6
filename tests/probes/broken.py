"""Ways to break an artifact, and to see it refused."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import MANIFEST, WEIGHTS, content_digest, load_artifact
from sidecar.errors import ArtifactError
from tests.probes.builders import WIDTH

Breaker = Callable[[Path], object]


def refusal(folder: Path, root: Path) -> ArtifactError:
    """Load within a second or fail: a refusal that waits for a writer is no refusal."""
    caught: list[ArtifactError] = []

    def attempt() -> None:
        try:
            load_artifact(folder, root=root)
        except ArtifactError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=1.0)
    assert not thread.is_alive(), "still waiting after 1 s"
    assert caught, "the artifact was accepted"
    return caught[0]


def weights_file(header: str | bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


BODY = np.ones(WIDTH + 1, "<f4").tobytes()


def header(**changes: Any) -> dict[str, Any]:
    """A sound header for `BODY`; a change of None takes the entry out."""
    sound = {
        "directions": {"dtype": "F32", "shape": [WIDTH, 1], "data_offsets": [0, 4 * WIDTH]},
        "offsets": {"dtype": "F32", "shape": [1], "data_offsets": [4 * WIDTH, 4 * WIDTH + 4]},
    }
    return {key: value for key, value in (sound | changes).items() if value is not None}


def entry(shape: list[Any], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def seal(folder: Path, weights: bytes | None = None, **changes: Any) -> None:
    """Change an artifact and make its digest right again: only the change itself is left to be found."""
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
    fields = json.loads((folder / MANIFEST).read_text()) | changes
    fields["content_digest"] = content_digest(fields, (folder / WEIGHTS).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(fields))


class Bomb:
    """Unpickling it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)
