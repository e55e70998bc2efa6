"""Which blocks are read, as people write it."""

from __future__ import annotations

import re

from probes.errors import LabError

# Of the model's depth: where representations of meaning lie.
_DEPTHS = (0.25, 0.375, 0.5, 0.625, 0.75)
_RUN = re.compile(r"(\d+)(?:-(\d+))?")


def parse_layers(text: str, depth: int) -> tuple[int, ...]:
    """Blocks in rising order; text: numbers and ranges ("8,14", "4-10"), "all", or "" for a choice that fits most models.

    The choice is block 0, which everything else is compared with, and five from a quarter to three quarters of the depth.
    Raises LabError for anything else, and for a block that the model does not have.

    >>> parse_layers("", 30), parse_layers("2-4,8", 30)
    ((0, 7, 10, 14, 18, 21), (2, 3, 4, 8))
    """
    if text == "all":
        return tuple(range(depth))
    if not text:
        return tuple(sorted({0, *(int(share * (depth - 1)) for share in _DEPTHS)}))
    layers: set[int] = set()
    for part in text.split(","):
        layers.update(_run(part.strip(), text))
    if max(layers) >= depth:
        raise LabError(f"--layers {text!r}: the model's blocks are 0 to {depth - 1}")
    return tuple(sorted(layers))


def _run(part: str, text: str) -> range:
    match = _RUN.fullmatch(part)
    if match is None:
        raise LabError(f'--layers {text!r}: want numbers and ranges such as "8,14" or "4-10", or "all"')
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise LabError(f"--layers {text!r}: {part} runs backwards")
    return range(first, min(last, 100_000) + 1)
