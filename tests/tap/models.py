"""Tiny random decoders and a byte-level tokenizer trained on the spot, for whatever needs an engine but no meaning."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

WIDTH, LAYERS, VOCABULARY = 32, 4, 600
EOS, PAD = 1, 2

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": PAD}
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
ARCHITECTURES = {
    "llama": ("LlamaConfig", {**_SIZES, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {**_SIZES, "num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 512}),
    "gpt_neox": ("GPTNeoXConfig", _SIZES),
    "mixtral": ("MixtralConfig", {**_SIZES, "num_key_value_heads": 2, "num_local_experts": LAYERS}),
}


def library() -> Any:
    """The transformers package, whose own types say too little to be checked against."""
    import transformers

    return transformers


def tiny(architecture: str = "llama", seed: int = 0) -> Any:
    """A random model in float32, the same for the same seed."""
    import torch

    name, sizes = ARCHITECTURES[architecture]
    config = getattr(library(), name)(**_COMMON, **sizes)
    torch.manual_seed(seed)
    model = library().AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    return model


def save_tiny(folder: Path) -> Path:
    """The tiny Llama with its tokenizer and chat template, as ``transformers serve`` loads it."""
    tiny().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))[:20]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.train([str(path) for path in text], trainer)
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return library().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        chat_template=template,
    )
