"""A steering vector: a direction with layer and scale, in the GGUF control vector that llama.cpp and repeng read.

The tensor ``direction.L`` is added to the residual stream after block L, blocks counted from 0; block 0 cannot have one. Ours is
the unit direction times the scale. What reading it again takes (length and offset of the probe) stands in two keys of our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.release.plain import Outgoing, PlainProbe, at_one_place, must_be_small, parse_aggregation, plain_probe
from sidecar.types import Site, TapPoint

_ARCHITECTURE = "controlvector"
_LENGTH, _OFFSET, _AGGREGATION = "stethoscope.length", "stethoscope.offset", "stethoscope.aggregation"
_TENSOR = re.compile(r"direction\.([1-9]\d{0,3})")


def write(path: Path, out: Outgoing, scale: float = 1.0) -> None:
    """Write the unit direction times ``scale``, a length in the residual stream. Raises LabError if it is not of that stream."""
    from gguf import GGUFWriter

    where = at_one_place(out, "a steering vector")
    if where.site is not Site.RESID_POST or where.layer < 1:
        raise LabError(
            f"{out.name}: a steering vector is added to the residual stream after block 1 or later, not at {where.name}"
        )
    if not np.isfinite(scale) or scale == 0:
        raise LabError(f"the scale must be a number other than 0, not {scale}")
    if out.plain.directions.shape[1] != 1:
        raise LabError(
            f"{out.name}: a steering vector holds one direction, this probe has {out.plain.directions.shape[1]}"
        )
    w, b = out.plain.directions[:, 0].astype(np.float64), float(out.plain.offsets[0])
    length = float(np.linalg.norm(w))
    writer = GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", out.manifest.model.architecture)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", out.manifest.model.layers)
    writer.add_float64(_LENGTH, length / scale)
    writer.add_float64(_OFFSET, b)
    if out.plain.aggregation is not None:
        writer.add_string(_AGGREGATION, out.plain.aggregation.model_dump_json())
    writer.add_tensor(f"direction.{where.layer}", (w / length * scale).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> PlainProbe:
    """Take the one direction of a control vector; a file from elsewhere has no offset, and its length is kept. Raises LabError."""
    must_be_small(path)
    found = _parsed(path)
    if len(found.tensors) != 1:
        raise LabError(f"{path}: it has {len(found.tensors)} tensors; a probe is one direction at one layer")
    ((name, vector),) = found.tensors.items()
    layer = _TENSOR.fullmatch(name)
    if layer is None:
        raise LabError(f"{path}: its tensor is {name!r}, not direction.LAYER")
    aggregation = parse_aggregation(path, found.aggregation)
    return plain_probe(path, vector * found.length, found.offset, (TapPoint(int(layer[1])),), aggregation)


@dataclass(frozen=True, slots=True)
class _Parsed:
    tensors: dict[str, npt.NDArray[np.float64]]
    length: float
    offset: float
    aggregation: str | None


def _parsed(path: Path) -> _Parsed:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        tensors = {one.name: np.asarray(one.data).astype(np.float64) for one in reader.tensors}
        length, offset = (float(_value(reader, key, default)) for key, default in ((_LENGTH, 1.0), (_OFFSET, 0.0)))
        aggregation = _value(reader, _AGGREGATION, None)
        return _Parsed(tensors, length, offset, None if aggregation is None else str(aggregation))
    except Exception as error:  # noqa: BLE001 - a foreign parser over foreign bytes raises whatever it runs into
        raise LabError(f"{path}: not a GGUF file that can be read: {type(error).__name__}") from None


def _value(reader: Any, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()
