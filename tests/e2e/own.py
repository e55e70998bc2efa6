"""Artifacts of one's own model, made exactly as docs/artifacts.md says: its code block is what runs here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parents[2] / "docs"
TEXTS = (
    "the sky is blue",
    "bread and butter",
    "a long way home",
    "one two three four five",
    "rain in the afternoon",
) * 4


def python_block(page: Path, number: int = 0) -> str:
    """A page's n-th python block, as a reader would copy it."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)[
        number
    ]


def write_artifacts(model: Any, layer: int, folder: Path, tokenizer: Any) -> None:
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "layer": layer,
        "direction": np.random.default_rng(0).normal(size=model.config.hidden_size).astype(np.float32),
        "texts": TEXTS,
        "folder": folder,
    }
    exec(compile(python_block(DOCS / "artifacts.md"), "docs/artifacts.md", "exec"), names)
