"""All conditions of one subject in one kind of numerics: what a process of its own does."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from probes.smollm2 import prepared_model
from tests.circuits.zoo.alerts import promtool_here
from tests.circuits.zoo.subjects import TOY, smollm2_subject, toy_subject
from tests.circuits.zoo.zoo import Size, expected, measure


def everything(name: str, numerics: str, size: Size, seed: int) -> list[dict[str, Any]]:
    """A row for each condition. Tells on stderr how far it is."""
    begun = time.monotonic()

    def told(text: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        home = Path(folder)
        model = (
            toy_subject(home, seed, size.texts)
            if name == TOY
            else smollm2_subject(home, seed, size.texts, prepared_model())
        )
        return list(measure(model, numerics, list(expected(name)[numerics]), size, seed, promtool_here(), told))
