"""The source of the real SGLang, by lock: to be read, and as far as it does without CUDA, to be driven."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from probes.whole import whole_folder

LOCK = Path(__file__).parent / "sglang.lock.txt"
_DOWNLOAD_S = 600.0
# The one wheel that the lock knows, on whatever machine and interpreter this runs: nothing compiled is unpacked.
_WHICH = "--only-binary=:all: --implementation=cp --python-version=3.11 --abi=cp311 --platform=manylinux_2_34_x86_64"


def sglang_source(cache: Path) -> Path:
    """The folder to put on a path of modules; downloaded on first use. Raises CalledProcessError if it cannot be had."""
    return whole_folder(cache / "engines" / "sglang", LOCK.read_text(), _unpack)


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        wish = ["--require-hashes", *_WHICH.split(), "--dest", work, "-r", str(LOCK)]
        subprocess.run([*pip, *wish], check=True, timeout=_DOWNLOAD_S)
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if not name.endswith(".so")])
