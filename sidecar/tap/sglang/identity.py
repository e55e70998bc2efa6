"""Which model an SGLang worker has loaded, and who the worker is."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from sidecar.tap.address import default_engine_id
from sidecar.tap.identity import tokenizer_digest, weights_digest
from sidecar.types import ModelIdentity


def identify(worker: Any) -> ModelIdentity:
    """Of a ``TpModelWorker``. SGLang fuses some weights: the fingerprint is not that of the same weights in transformers."""
    from sglang.version import __version__

    config, model = worker.model_config, worker.model_runner.model
    text = config.hf_text_config
    return ModelIdentity(
        name=PurePath(str(config.model_path)).name,
        architecture=str((getattr(config.hf_config, "architectures", None) or [type(model).__name__])[0]),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        weights_digest=weights_digest(model),
        tokenizer_digest=tokenizer_digest(worker.tokenizer),
        dtype=str(config.dtype).removeprefix("torch."),
        quantisation=str(config.quantization or "none"),
        engine="sglang",
        engine_version=str(__version__),
    )


def engine_id(replica: int | None) -> str:
    """One for each replica of a data-parallel server: each has a scheduler of its own. None: there is only one."""
    name = default_engine_id("sglang")
    return name if replica is None else f"{name}/dp{replica}"
