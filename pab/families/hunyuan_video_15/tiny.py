"""Writes a small HunyuanVideo 1.5 with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pab.families.hunyuan_video_15.config import Hunyuan15Model
from pab.families.hunyuan_video_15.text import INSTRUCTION
from pab.library.parts import library_class
from pab.weights.tiny_parts import write_byte_tokenizer, write_component, write_scheduler

TEXT_CHANNELS, GLYPH_CHANNELS = 32, 16
VAE = {
    "_class_name": "AutoencoderKLHunyuanVideo15",
    "latent_channels": 32,
    "block_out_channels": [8, 8, 8, 16, 32],
    "layers_per_block": 1,
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 4,
    "scaling_factor": 1.03682,
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_BYTE_TOKENS = 256 + 3
"""ByT5's: a byte each, and three special ones."""


def transformer_config(model: Hunyuan15Model) -> dict[str, object]:
    """Returns the configuration of a narrow transformer of the published depth."""
    return {
        "_class_name": "HunyuanVideo15Transformer3DModel",
        "in_channels": 65,
        "out_channels": 32,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": model.num_layers,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": TEXT_CHANNELS,
        "text_embed_2_dim": GLYPH_CHANNELS,
        "image_embed_dim": 8,
        "rope_axes_dim": [4, 6, 6],
        "target_size": 640,
        "task_type": "t2v",
    }


def write_small_hunyuan_video_15(folder: Path, seed: int, model: Hunyuan15Model) -> None:
    """Writes a narrow model of any depth."""
    torch.manual_seed(seed)
    config = transformer_config(model)
    transformer = library_class("HunyuanVideo15Transformer3DModel").from_config(config)
    write_component(folder / "transformer", transformer, config)
    write_component(folder / "vae", library_class("AutoencoderKLHunyuanVideo15").from_config(VAE), VAE)
    _write_qwen(folder / "text_encoder", _write_chat_tokenizer(folder / "tokenizer"))
    _write_byt5(folder)
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": model.shift,
        "use_dynamic_shifting": False,
    }
    write_scheduler(folder, scheduler)


def _write_chat_tokenizer(folder: Path) -> int:
    """Writes a tokenizer with Qwen's chat; returns its number of tokens."""
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "pad_token": SPECIALS[0],
        "eos_token": SPECIALS[2],
        "padding_side": "right",
        "model_max_length": 8192,
        "chat_template": CHAT,
    }
    return write_byte_tokenizer(folder, settings, specials=SPECIALS, size=700, learned=[INSTRUCTION] * 3)


def _write_qwen(folder: Path, vocabulary: int) -> None:
    """Writes the language half of a Qwen2.5-VL, three layers with random weights."""
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_CHANNELS,
        intermediate_size=2 * TEXT_CHANNELS,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder.mkdir(parents=True)
    tensors = {key: value.contiguous() for key, value in Qwen2_5_VLTextModel(config).state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config.to_json_file(folder / "config.json", use_diff=False)


def _write_byt5(folder: Path) -> None:
    """Writes a two-layer ByT5 into `text_encoder_2/` and `tokenizer_2/`, whose tokenizer needs no vocabulary."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=_BYTE_TOKENS,
        d_model=GLYPH_CHANNELS,
        d_kv=8,
        d_ff=2 * GLYPH_CHANNELS,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    encoder, tokenizer = folder / "text_encoder_2", folder / "tokenizer_2"
    encoder.mkdir()
    tensors = T5EncoderModel(config).state_dict()
    tensors.pop("encoder.embed_tokens.weight")
    save_file({key: value.contiguous() for key, value in tensors.items()}, encoder / "model.safetensors")
    config.to_json_file(encoder / "config.json", use_diff=False)
    tokenizer.mkdir()
    settings = {
        "tokenizer_class": "ByT5Tokenizer",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "model_max_length": 512,
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
