"""``sidecar record`` as a process of its own: it knows the network, and the lab does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from probes.activations.recorded import prompt_name, write_prompts
from probes.errors import LabError
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress

_PROMPTS = "prompts.jsonl"
_LOOK_S = 0.5
_END_S = 10.0
_GAP = re.compile(r"not recorded: ([0-9a-f]{32}): (.*)")


def ask(
    folder: Path,
    points: Sequence[TapPoint],
    server: str,
    address: str,
    tokens: Sequence[Sequence[int]],
    places: Sequence[str],
    bars: Progress,
) -> None:
    """Have every text that ``folder`` lacks asked and recorded there. places: where each text came from, for people.

    Raises LabError with what stood in the way: no engine, another one than before, texts with gaps.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_prompts(folder / _PROMPTS, tokens)
    command = [sys.executable, "-m", "sidecar.cli", "record", "--into", str(folder)]
    command += ["--tap-points", ",".join(point.name for point in points), "--server", server]
    command += ["--ask", str(folder / _PROMPTS), *(("--address", address) if address else ())]
    names = {prompt_name(ids): place for ids, place in zip(tokens, places, strict=True)}
    with tempfile.TemporaryFile() as said:
        status = _run(command, folder, len(names), said, bars)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").splitlines()
    if status:
        raise LabError(_why(lines, names, status))


def _run(command: Sequence[str], folder: Path, wanted: int, said: IO[bytes], bars: Progress) -> int:
    """The exit status. However this ends, the process does too."""
    task = bars.add_task("waiting for the engine", total=wanted)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)  # noqa: S603 - our own interpreter
    try:
        while process.poll() is None:
            time.sleep(_LOOK_S)
            count = sum(one.name.endswith(".safetensors") for one in os.scandir(folder))
            bars.update(task, description="recording" if count else "waiting for the engine", completed=count)
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _why(lines: Sequence[str], names: dict[str, str], status: int) -> str:
    """What it complained of, with the places of the texts instead of their names."""
    told = [f"{names.get(gap[1], gap[1])}: {gap[2]}" for gap in map(_GAP.fullmatch, lines) if gap is not None]
    told += [line for line in lines if line.startswith(("sidecar: ", "and ", "taps dropped "))]
    if not told:
        told = [f"sidecar record ended with status {status}", *lines[-5:]]
    return "\n  ".join(["not every text was recorded; what was is kept:", *told])
