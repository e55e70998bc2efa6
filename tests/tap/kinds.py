"""Tiny random models of other kinds than decoders of text: the real architectures, a few thousand parameters each."""

from __future__ import annotations

from typing import Any

from tests.tap.models import EOS, PAD, VOCABULARY, WIDTH, library

IMAGE, VIDEO = 590, 591  # ids that stand for pieces of pictures
PATCHES = 4  # of a picture, each a position
MEL_BINS, FRAMES = 8, 24  # a spectrogram of so many frames makes half as many positions
_ENDS = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": 0}


def _seeded(make: Any, config: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return make(config).eval()


def t5() -> Any:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
    config = library().T5Config(vocab_size=VOCABULARY, **sizes, **_ENDS)
    return _seeded(library().T5ForConditionalGeneration, config)


def bart() -> Any:
    return _seeded(library().BartForConditionalGeneration, library().BartConfig(**_sides(), **_ENDS, bos_token_id=0))


def whisper() -> Any:
    speech = {"num_mel_bins": MEL_BINS, "max_source_positions": FRAMES // 2, "max_target_positions": 64}
    config = library().WhisperConfig(**_sides(), **speech, **_ENDS, bos_token_id=0)
    model = _seeded(library().WhisperForConditionalGeneration, config)
    model.generation_config.no_timestamps_token_id = VOCABULARY - 2
    model.generation_config.max_length = 40
    return model


def _sides() -> dict[str, Any]:
    """An encoder of two blocks and a decoder of three."""
    sizes = {"layers": (2, 3), "attention_heads": (4, 4), "ffn_dim": (64, 64)}
    both = {
        f"{side}_{name}": value[n] for name, value in sizes.items() for n, side in enumerate(("encoder", "decoder"))
    }
    return {**both, "d_model": WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 128}


def llava() -> Any:
    text = library().LlamaConfig(**_text(), num_key_value_heads=2)
    vision = library().CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = library().LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_feature_layer=-2, image_seq_length=PATCHES
    )
    return _seeded(library().LlavaForConditionalGeneration, config)


def qwen2_vl() -> Any:
    text = {
        **_text(),
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {"embed_dim": 16, "hidden_size": WIDTH, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = library().Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=592
    )
    return _seeded(library().Qwen2VLForConditionalGeneration, config)


def _text() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": 0,
    }


def diffusion_transformer() -> Any:
    """Of speech: it turns noise into a spectrogram along a flow whose time runs from 0 to 1."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    small = {"enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 4, "enc_res2net_scale": 2, "enc_dim": 8}
    config = omni.Qwen2_5OmniDiTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=8,
        emb_dim=16,
        enc_emb_dim=8,
        num_embeds=50,
        mel_dim=MEL_BINS,
        look_ahead_layers=[1],
        look_backward_layers=[0],
        dropout=0.0,
        **small,
    )
    return _seeded(omni.Qwen2_5OmniToken2WavDiTModel, config)
