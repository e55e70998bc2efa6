"""Torch's ways to multiply. Imported late, and only if torch is installed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sidecar.reading.products import Product, aligned
from sidecar.types import ElementType, FloatArray

_BF16_MAX = float(torch.finfo(torch.bfloat16).max)


def torch_products() -> tuple[dict[str, Product], dict[str, str]]:
    """The products of this version of torch, and why others are not there. Torch is told to use one thread."""
    torch.set_num_threads(1)  # two that wait for each other on busy cores took 28 ms for a product of 0.36 ms
    with (
        warnings.catch_warnings()
    ):  # torch warns once a process that it could write to a read-only array: it only reads
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(bytes(4), dtype=np.float32))
    products: dict[str, Product] = {"torch_f32": TorchFloat32()}
    if _settings() is None:
        return products, {"torch_bf16x2": f"torch {torch.__version__} cannot multiply float32 in bfloat16 units"}
    return products | {"torch_bf16x2": TorchSplitBfloat16()}, {}


def _settings() -> Any:
    """How oneDNN multiplies, of the whole process; None if this version of torch has no such switch."""
    return getattr(torch.backends.mkldnn, "matmul", None)


class _Scratch:
    """Float32 memory that grows to the largest step and stays."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def rows(self, values: npt.NDArray[Any], dtype: ElementType) -> torch.Tensor:
        """The values [T, D] in float32; the memory of the array itself if it is that already."""
        if dtype is ElementType.BF16:
            tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(values)
        return tensor if dtype is ElementType.F32 else self.empty(*values.shape).copy_(tensor)

    def empty(self, rows: int, columns: int) -> torch.Tensor:
        if self._memory.numel() < rows * columns:
            self._memory = torch.empty(rows * columns)
        return self._memory[: rows * columns].view(rows, columns)


class TorchFloat32:
    """Widen with ``copy_``, then mm: oneDNN's or MKL's sgemm."""

    def __init__(self) -> None:
        self._wide = _Scratch()

    def prepare(self, directions: FloatArray) -> torch.Tensor:
        return torch.from_numpy(aligned(directions))

    def takes(self, dtype: ElementType) -> bool:
        del dtype
        return True

    def multiply(self, values: npt.NDArray[Any], dtype: ElementType, prepared: torch.Tensor, out: FloatArray) -> None:
        torch.mm(self._wide.rows(values, dtype), prepared, out=torch.from_numpy(out))


class TorchSplitBfloat16:
    """Directions as a bfloat16 part and the bfloat16 of what is left; products in the CPU's bfloat16 units, sums in float32.

    A direction keeps 16 of its 24 bits, 2^-17 of it is lost; a bfloat16 row loses nothing. Twice the columns, still faster
    where the units are there; where they are not, torch multiplies in float32 and the calibration finds it slow.
    """

    def __init__(self) -> None:
        self._wide, self._halves = _Scratch(), _Scratch()

    def prepare(self, directions: FloatArray) -> torch.Tensor:
        whole = torch.from_numpy(aligned(directions))
        upper = whole.clamp(-_BF16_MAX, _BF16_MAX).to(torch.bfloat16).float()
        lower = (whole - upper).to(torch.bfloat16).float()
        return torch.cat([upper, lower], dim=1).contiguous()  # [D, 2K]

    def takes(self, dtype: ElementType) -> bool:
        return dtype is ElementType.BF16

    def multiply(self, values: npt.NDArray[Any], dtype: ElementType, prepared: torch.Tensor, out: FloatArray) -> None:
        rows = self._wide.rows(values, dtype)
        halves = self._halves.empty(rows.shape[0], prepared.shape[1])
        settings = _settings()
        before = settings.fp32_precision
        settings.fp32_precision = "bf16"  # the worker's process is its own
        try:
            torch.mm(rows, prepared, out=halves)
        finally:
            settings.fp32_precision = before
        columns = out.shape[1]
        torch.add(halves[:, :columns], halves[:, columns:], out=torch.from_numpy(out))
