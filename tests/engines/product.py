"""Our own package as a user installs it: a wheel, built from a copy of the checkout as it is now."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("sidecar", "probes", "protos")
_FILES = ("pyproject.toml", "README.md", "LICENSE")
_NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc")
_BUILD_S = 300.0


def source_digest() -> str:
    """SHA-256, in hex, of the names and bytes of everything that the wheel is built from, committed or not."""
    digest = hashlib.sha256()
    for path in _sources():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def build_wheel(python: Path, folder: Path) -> Path:
    """Build the wheel into ``folder`` with this interpreter's setuptools. Raises CalledProcessError.

    From a copy: a build folder left in the checkout would ship modules that were deleted since.
    """
    copy = folder / "source"
    copy.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=_NOT_SOURCE)
    for name in _FILES:
        shutil.copy(ROOT / name, copy)
    command = [str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(copy)], cwd=folder, check=True, timeout=_BUILD_S)
    return next(folder.glob("stethoscope-*.whl"))


def _sources() -> list[Path]:
    inside = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    kept = [path for path in inside if "__pycache__" not in path.parts and path.suffix != ".pyc"]
    return sorted([*kept, *(ROOT / name for name in _FILES)])
