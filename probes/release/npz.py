"""A logistic regression on standardised states as numpy arrays: the probe file of hulder, format version 1.

Arrays weights, mean, std [D], bias [], and metadata, a JSON object in a text. The score is
sigmoid(weights . (x - mean) / std + bias).
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.release.plain import (
    LIMIT_BYTES,
    Outgoing,
    PlainProbe,
    at_one_place,
    must_be_small,
    parse_aggregation,
    parse_where,
    plain_probe,
    single,
)
from probes.strictjson import StrictJsonError, parse_strict

FORMAT_VERSION = 1
_ARRAYS = ("weights", "bias", "mean", "std")


def write(path: Path, out: Outgoing) -> None:
    """Its reading is ours; its threshold, on the sigmoid of the reading, gives our decisions. Raises LabError if it cannot."""
    from scipy.special import expit

    where = at_one_place(out, "hulder's file")
    w, b = single(out.plain, "hulder's file")
    manifest, fires = out.manifest, out.score_threshold
    assert manifest.threshold is not None
    told: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": manifest.name,
        "tap_point": where.name,
        "threshold": float(expit(fires)),
        "target_fpr": manifest.threshold.target_fpr,
    }
    if out.plain.aggregation is not None:
        told["aggregation"] = out.plain.aggregation.model_dump_json()
    with path.open("wb") as file:  # numpy adds .npz to a name without it, but not to a file
        np.savez(
            file,
            allow_pickle=False,
            weights=w,
            bias=np.float64(b),
            mean=np.zeros_like(w),
            std=np.ones_like(w),
            metadata=np.array(json.dumps(told)),
        )


def read(path: Path) -> PlainProbe:
    """Fold mean and std into the direction. Raises LabError; nothing in the file is ever unpickled."""
    must_be_small(path)
    arrays = _arrays(path)
    if missing := [name for name in ("metadata", *_ARRAYS) if name not in arrays]:
        raise LabError(f"{path}: it lacks {', '.join(missing)}")
    told = _metadata(path, arrays["metadata"])
    weights, mean, std = (_vector(path, name, arrays[name]) for name in ("weights", "mean", "std"))
    if not len(weights) == len(mean) == len(std):
        raise LabError(f"{path}: weights, mean and std differ in length")
    if not (std > 0).all():
        raise LabError(f"{path}: a std is not above 0")
    w = weights / std
    b = _vector(path, "bias", arrays["bias"].reshape(-1))[:1].sum() - float(mean @ w)
    where = parse_where(path, _text(told.get("tap_point")))
    return plain_probe(path, w, b, where, parse_aggregation(path, _text(told.get("aggregation"))))


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > LIMIT_BYTES:
                raise LabError(f"{path}: unpacked it is larger than any probe")
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError):
        raise LabError(f"{path}: not an .npz of plain arrays") from None


def _metadata(path: Path, packed: npt.NDArray[Any]) -> dict[str, Any]:
    try:
        told = parse_strict(str(packed).encode())
    except (StrictJsonError, UnicodeError):
        raise LabError(f"{path}: its metadata is not sound JSON") from None
    if not isinstance(told, dict) or told.get("format_version") != FORMAT_VERSION:
        raise LabError(f"{path}: its metadata must say format_version {FORMAT_VERSION}")
    return told


def _vector(path: Path, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if values.ndim != 1 or values.dtype.kind not in "fiu" or not len(values):
        raise LabError(f"{path}: {name} is not a row of numbers")
    found = values.astype(np.float64)
    if not np.isfinite(found).all():
        raise LabError(f"{path}: a number of {name} is NaN or infinite")
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
