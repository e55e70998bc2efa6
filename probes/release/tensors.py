"""Plain ``w, b`` in safetensors: what a torch user keeps of a probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probes.errors import LabError
from probes.release.plain import (
    Outgoing,
    PlainProbe,
    at_one_place,
    must_be_small,
    parse_aggregation,
    parse_where,
    plain_probe,
)

# Ours first; then the names of torch's nn.Linear, whose weight is [K, D].
_NAMES = (("w", "b"), ("weight", "bias"))


def write(path: Path, out: Outgoing) -> None:
    """Tensors w, float32 [D] (or [D, K] if there are several directions), and b, float32 [K]; where and how in the metadata."""
    from safetensors.numpy import save_file

    plain, about, where = out.plain, out.manifest, at_one_place(out, "a file of w and b")
    w = plain.directions[:, 0] if plain.directions.shape[1] == 1 else plain.directions
    told = {"name": about.name, "tap_point": where.name}
    if plain.aggregation is not None:
        told["aggregation"] = plain.aggregation.model_dump_json()
    save_file({"w": np.ascontiguousarray(w), "b": np.ascontiguousarray(plain.offsets)}, path, told)


def read(path: Path) -> PlainProbe:
    """Take w and b, or the weight and bias of an nn.Linear; no other tensors may be there. Raises LabError."""
    from safetensors import SafetensorError, safe_open

    must_be_small(path)
    try:
        with safe_open(path, "np") as file:
            names, told = sorted(file.keys()), file.metadata() or {}
            pair = next((pair for pair in _NAMES if sorted(pair) == names), None)
            if pair is None:
                raise LabError(f"{path}: want the tensors w and b, or weight and bias; it has {', '.join(names)[:200]}")
            w, b = (np.asarray(file.get_tensor(name)) for name in pair)
    except (SafetensorError, OSError, TypeError) as error:
        raise LabError(f"{path}: not a safetensors file that can be read: {error}") from None
    turned = w.T if pair == _NAMES[1] and w.ndim == 2 else w
    where = parse_where(path, told.get("tap_point"))
    return plain_probe(path, turned, b, where, parse_aggregation(path, told.get("aggregation")))
