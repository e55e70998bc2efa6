"""Tiny random models of real architectures with SmolLM2's tokenizer, for what needs a real engine but no meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from probes.smollm2 import cache_folder, prepared_model
from probes.whole import whole_folder

# vLLM's attention on CPUs knows heads of 32 columns and more.
WIDTH, LAYERS, HEADS, KV_HEADS = 128, 4, 4, 2
ARCHITECTURES = {"llama": "LlamaConfig", "qwen3": "Qwen3Config"}
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    # Wide enough that attention picks and that answers differ; with the usual 0.02 every layer is all but the identity.
    "initializer_range": 0.2,
}


def tiny_model(architecture: str) -> Path:
    """Return the folder of a float32 model of one of ARCHITECTURES, made on first use and the same in every cache."""
    target = cache_folder() / "engines" / "models" / f"tiny-{architecture}"
    return whole_folder(target, json.dumps([architecture, _SIZES]), lambda folder: _make(architecture, folder))


def _make(architecture: str, folder: Path) -> None:
    import torch
    import transformers

    library: Any = transformers  # its own types say too little
    tokenizer = library.AutoTokenizer.from_pretrained(prepared_model(progress=False))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(library, ARCHITECTURES[architecture])(vocab_size=len(tokenizer), **ids, **_SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        library.AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
