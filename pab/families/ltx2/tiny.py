"""Writes a small LTX-2 with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pab.families.ltx2.config import Ltx2Model
from pab.families.ltx2.text import LIBRARY_MODULE
from pab.library.parts import library_class
from pab.library.stretched_levels import SCHEDULER
from pab.weights.tiny_parts import write_byte_tokenizer, write_component, write_scheduler

TEXT_CHANNELS, TEXT_LAYERS = 16, 2
VAE = {
    "_class_name": "AutoencoderKLLTX2Video",
    "latent_channels": 128,
    "block_out_channels": [4, 8, 8, 8],
    "decoder_block_out_channels": [8, 16, 32],
    "layers_per_block": [1, 1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "timestep_conditioning": False,
    "encoder_causal": True,
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
AUDIO_VAE = {
    "_class_name": "AutoencoderKLLTX2Audio",
    "base_channels": 128,  # also the values of a latent: fewer do not fit
    "ch_mult": [1, 1, 1],
    "num_res_blocks": 0,
    "latent_channels": 8,
    "sample_rate": 16000,
    "mel_hop_length": 160,
    "mel_bins": 64,
}
VOCODER = {
    "_class_name": "LTX2Vocoder",
    "in_channels": 128,
    "hidden_channels": 32,
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1]],
    "output_sampling_rate": 24000,
}
CONNECTORS = {
    "_class_name": "LTX2TextConnectors",
    "caption_channels": TEXT_CHANNELS,
    "text_proj_in_factor": TEXT_LAYERS + 1,
    **{f"{stream}_connector_num_attention_heads": 2 for stream in ("video", "audio")},
    **{f"{stream}_connector_attention_head_dim": 8 for stream in ("video", "audio")},
    **{f"{stream}_connector_num_layers": 1 for stream in ("video", "audio")},
    **{f"{stream}_connector_num_learnable_registers": 8 for stream in ("video", "audio")},
    "rope_type": "split",
}
SPECIALS = ("<pad>", "<eos>", "<bos>")


def transformer_config(num_layers: int) -> dict[str, object]:
    """Returns the configuration of a narrow transformer of the published depth."""
    return {
        "_class_name": "LTX2VideoTransformer3DModel",
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_in_channels": 128,
        "audio_out_channels": 128,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": num_layers,
        "caption_channels": TEXT_CHANNELS,
        "rope_type": "split",
    }


def write_small_ltx2(folder: Path, seed: int, model: Ltx2Model) -> None:
    """Writes a narrow model of any depth."""
    torch.manual_seed(seed)
    for name, config in (
        ("transformer", transformer_config(model.num_layers)),
        ("vae", VAE),
        ("audio_vae", AUDIO_VAE),
        ("vocoder", VOCODER),
        ("connectors", CONNECTORS),
    ):
        module = "diffusers" if config["_class_name"] not in ("LTX2Vocoder", "LTX2TextConnectors") else LIBRARY_MODULE
        part = library_class(str(config["_class_name"]), module).from_config(config)
        for key, buffer in part.named_buffers():
            if key in ("latents_mean", "latents_std"):
                buffer.uniform_(0.5, 1.5)
        write_component(folder / name, part, config)
    _write_gemma(folder / "text_encoder", _write_tokenizer(folder / "tokenizer"))
    write_scheduler(folder, {**SCHEDULER, "shift": 1.0})


def _write_tokenizer(folder: Path) -> int:
    """Writes a tokenizer that begins every text as Gemma's does; returns its number of tokens."""
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "pad_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "bos_token": SPECIALS[2],
        "padding_side": "left",
        "model_max_length": 1024,
    }
    return write_byte_tokenizer(folder, settings, specials=SPECIALS, size=500, begin=SPECIALS[2])


def _write_gemma(folder: Path, vocabulary: int) -> None:
    """Writes the language half of a two-layer Gemma 3; its configuration has the other half too, as published."""
    from transformers import Gemma3Config, Gemma3TextConfig, Gemma3TextModel

    text = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_CHANNELS,
        intermediate_size=2 * TEXT_CHANNELS,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    folder.mkdir(parents=True)
    states = Gemma3TextModel(text).state_dict()
    tensors = {f"model.language_model.{key}": value.contiguous() for key, value in states.items()}
    save_file(tensors, folder / "model.safetensors")
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    config.to_json_file(folder / "config.json", use_diff=False)
