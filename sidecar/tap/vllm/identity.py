"""Which model a vLLM worker has loaded, and who the worker is."""

from __future__ import annotations

import logging
from pathlib import PurePath
from typing import Any

from sidecar.tap.address import default_engine_id
from sidecar.tap.identity import tokenizer_digest, weights_digest
from sidecar.types import ModelIdentity

log = logging.getLogger("stethoscope.tap")


def identify(config: Any, model: Any) -> ModelIdentity:
    """config: the ``VllmConfig``; model: as loaded, by whose own parameters the weights are fingerprinted.

    vLLM fuses some of them, so the fingerprint is not that of the same weights in transformers.
    """
    import vllm

    told = config.model_config
    text = told.hf_text_config
    return ModelIdentity(
        name=PurePath(str(told.model)).name,
        architecture=str((getattr(told.hf_config, "architectures", None) or [type(model).__name__])[0]),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        weights_digest=weights_digest(model),
        tokenizer_digest=_tokenizer(told),
        dtype=str(told.dtype).removeprefix("torch."),
        quantisation=str(told.quantization or "none"),
        engine="vllm",
        engine_version=str(vllm.__version__),
    )


def _tokenizer(told: Any) -> str:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            told.tokenizer, revision=told.tokenizer_revision, trust_remote_code=told.trust_remote_code
        )
    except Exception as error:  # noqa: BLE001 - a model may come without one, and it may be of any kind
        log.warning("tokenizer_not_known why=%s", error)
        return ""
    return tokenizer_digest(tokenizer)


def engine_id(config: Any, stage: int) -> str:
    """One for each engine core and each stage of a pipeline: a stage has its own blocks and sends its own batches."""
    parallel = config.parallel_config
    name = default_engine_id("vllm")
    if parallel.data_parallel_size > 1:
        name += f"/dp{parallel.data_parallel_rank}"
    if parallel.pipeline_parallel_size > 1:
        name += f"/pp{stage}"
    return name
