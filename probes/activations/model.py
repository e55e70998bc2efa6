"""Open a local decoder, by its transformers folder or its GGUF file; nothing is ever downloaded, no pickle is ever read."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probes.errors import LabError
from probes.manifest import ModelBinding
from sidecar.types import ModelIdentity

if TYPE_CHECKING:
    from rich.progress import Progress

ModelDtype = Literal["float32", "bfloat16", "float16"]
GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class LabModel:
    """A loaded model with the names by which stores and artifacts are bound to it. template_digest: "" without a template."""

    model: Any
    tokenizer: Any
    identity: ModelIdentity
    template_digest: str

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def config(self) -> Any:
        """Of transformers."""
        return self.model.config

    @property
    def binding(self) -> ModelBinding:
        """What is written into whatever is made from this model's states."""
        told = {name: getattr(self.identity, name) for name in ModelBinding.model_fields}
        return ModelBinding(**told | {"encoder_layers": self.identity.encoder_layers or None})


@dataclass(frozen=True, slots=True)
class UnloadedModel:
    """A model's folder without its weights, which another engine has. template_digest: "" without a template."""

    name: str
    tokenizer: Any
    config: Any
    template_digest: str
    tokenizer_digest: str

    @property
    def layers(self) -> int:
        """Blocks of its decoder."""
        return int(self.config.get_text_config(decoder=True).num_hidden_layers)


def open_unloaded(path: Path) -> UnloadedModel:
    """What is needed to make token ids of texts. Raises LabError naming the folder, as `open_model` does."""
    import transformers

    from sidecar.tap.identity import text_digest, tokenizer_digest

    auto: Any = transformers  # its loaders have no types
    if not (path / "config.json").is_file():
        raise LabError(f"{path} is no folder of a transformers model: it has no config.json")
    try:
        tokenizer = auto.AutoTokenizer.from_pretrained(path, local_files_only=True)
        config = auto.AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise LabError(f"{path} cannot be loaded: {_first_line(error)}") from None
    return UnloadedModel(
        path.name, tokenizer, config, text_digest(tokenizer.chat_template), tokenizer_digest(tokenizer)
    )


def open_model(path: Path, dtype: ModelDtype = "float32") -> LabModel:
    """Load a model on one thread (two on busy cores are slower by far) and fingerprint it as the tap does.

    path: a folder with safetensors weights, a config and a fast tokenizer; for a GGUF file see `prepared`. Raises LabError
    naming the folder if it is not there, not whole, no decoder, or needs code of its own.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    from sidecar.tap.identity import identify, text_digest

    torch.set_num_threads(1)
    auto: Any = transformers  # its loaders have no types
    auto.utils.logging.disable_progress_bar()
    if not (path / "config.json").is_file():
        raise LabError(f"{path} is no folder of a transformers model: it has no config.json")
    try:
        tokenizer = auto.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = auto.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise LabError(f"{path} cannot be loaded: {_first_line(error)}") from None
    try:
        identity = identify(model, tokenizer, name=path.name)
    except ValueError as error:
        raise LabError(f"{path}: {error}") from None
    if not identity.tokenizer_digest:
        raise LabError(
            f"{path}: a probe is bound to its tokenizer, and this one, which is not a fast one, has no digest"
        )
    return LabModel(model, tokenizer, identity, text_digest(tokenizer.chat_template))


def prepared(path: Path, bars: Progress) -> Path:
    """The folder to open for ``path``: itself, or for a GGUF file its weights expanded to float32, made once in the cache.

    Raises LabError if the file is not there or cannot be expanded.
    """
    if path.suffix.casefold() != GGUF:
        return path
    from probes.smollm2 import CONVERSION, cache_folder, convert_gguf, file_digest
    from probes.whole import whole_folder

    if not path.is_file():
        raise LabError(f"{path} is not there")
    digest = file_digest(path)
    try:
        return whole_folder(
            cache_folder() / "gguf" / digest[:16] / path.stem,
            f"{digest} conversion {CONVERSION}",
            lambda folder: convert_gguf(path, folder, bars),
        )
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, struct.error) as error:
        raise LabError(f"{path} cannot be expanded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
