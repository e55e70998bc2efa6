"""What the demo is asked to do, checked before anything is prepared."""

from __future__ import annotations

import importlib.resources
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_MOST = 100  # artifacts that are shipped
CIRCUIT = "induction"


class Plant(StrEnum):
    """What is done to a demo that runs, so that it has something to find."""

    ABLATION = "ablation"  # the circuit's heads write nothing any more: the model changed
    TRAFFIC = "traffic"  # nobody asks for what the circuit does any more: the traffic changed


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says. Port 8000 and 9464 are what a newcomer expects to find."""

    seconds: float | None = None
    summary: Path | None = None
    picture: Path | None = None
    port: int = 8000
    metrics_port: int = 9464
    block: str | None = None
    plant: Plant | None = None


def problems(options: DemoOptions) -> list[str]:
    """Everything that could not work, one line each: nobody waits minutes for the demo to fail at its end."""
    return [*_numbers(options), *_files(options), *_signal(options)]


def shipped_artifacts() -> Path:
    """The probes for SmolLM2 that come with the package."""
    return _package() / "zoo" / "smollm2-135m"


def shipped_circuit() -> Path:
    """The one that the demo watches."""
    return _package() / "circuits" / "shipped" / CIRCUIT


def _package() -> Path:
    return Path(str(importlib.resources.files("probes")))


def _signal(options: DemoOptions) -> Iterator[str]:
    """A name that no probe has, or one that never acts since it failed its gates, would block nothing, and say nothing."""
    if options.block is None:
        return
    from probes.manifest import Kind
    from probes.registry import load_folder

    shipped = [one.manifest for one in load_folder(shipped_artifacts(), limit=_MOST)]
    names = sorted(one.name for one in shipped if one.kind is Kind.LINEAR_PROBE and not one.failed)
    if options.block not in names:
        yield f"--block {options.block}: want one of {', '.join(names)}"


def _numbers(options: DemoOptions) -> Iterator[str]:
    if options.seconds is not None and not 0 < options.seconds < math.inf:
        yield f"--seconds {options.seconds:g}: want a number above 0"
    for flag, port in (("--port", options.port), ("--metrics-port", options.metrics_port)):
        if not 1 <= port <= 65535:
            yield f"{flag} {port}: want 1 to 65535"
    if options.port == options.metrics_port:
        yield f"--metrics-port {options.metrics_port}: is the server's own --port"


def _files(options: DemoOptions) -> Iterator[str]:
    for flag, path in (("--summary", options.summary), ("--picture", options.picture)):
        if path is None:
            continue
        if not path.parent.is_dir():
            yield f"{flag} {path}: there is no folder {path.parent}"
        elif path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            yield f"{flag} {path}: cannot be written"
