"""Writes a small HunyuanVideo with random weights in the published layout, for tests and for trying things on a CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pab.families.hunyuan_video import image_text
from pab.families.hunyuan_video.config import LATENT_CHANNELS, MAX_TEXT_TOKENS, SHIFT, HunyuanModel
from pab.families.hunyuan_video.text import INSTRUCTION, MAX_CLIP_TOKENS
from pab.library.parts import library_class
from pab.weights.tiny_parts import write_byte_tokenizer, write_component, write_image_processor, write_scheduler

LLAMA_CHANNELS, CLIP_CHANNELS, IMAGE_CHANNELS = 32, 16, 16
IMAGE_SIDE = 48
"""Pixels of an image that LLaVA sees, 2x2 a token: as many tokens as are published."""
VAE = {
    "_class_name": "AutoencoderKLHunyuanVideo",
    "latent_channels": 16,
    "block_out_channels": [4, 4, 4, 4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 0.476986,
    "mid_block_add_attention": True,
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": SHIFT}
BEGIN, PAD = "<|begin_of_text|>", "<pad>"
LLAMA_SPECIALS = (BEGIN, PAD, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAVA_SPECIALS = (*LLAMA_SPECIALS, "<image>")
LLAVA_TOKENS = 480
"""So few that the instruction has a few more tokens than the published one, and never fewer."""
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def transformer_config(model: HunyuanModel) -> dict[str, object]:
    """Returns the configuration of a narrow transformer of the published depth."""
    image = model.image
    return {
        "_class_name": "HunyuanVideoTransformer3DModel",
        "in_channels": LATENT_CHANNELS + (0 if image is None else image.channels),
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": model.num_layers,
        "num_single_layers": model.num_single_layers,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 2,
        "patch_size_t": 1,
        "guidance_embeds": image is None or model.told_guidance is None,
        "image_condition_type": None if image is None else image.name,
        "text_embed_dim": LLAMA_CHANNELS,
        "pooled_projection_dim": CLIP_CHANNELS,
        "rope_axes_dim": [4, 6, 6],
    }


def write_small_hunyuan_video(folder: Path, seed: int, model: HunyuanModel) -> None:
    """Writes a narrow model of any depth."""
    torch.manual_seed(seed)
    config = transformer_config(model)
    write_component(folder / "transformer", library_class("HunyuanVideoTransformer3DModel").from_config(config), config)
    write_component(folder / "vae", library_class("AutoencoderKLHunyuanVideo").from_config(VAE), VAE)
    if model.image is None:
        write_llama(folder / "text_encoder", write_llama_tokenizer(folder / "tokenizer"))
    else:
        learned = [image_text.INSTRUCTION] * 3 + ["system\n\n"] * 50
        vocabulary = write_llama_tokenizer(folder / "tokenizer", LLAVA_SPECIALS, learned, size=LLAVA_TOKENS)
        write_llava(folder / "text_encoder", vocabulary)
        write_image_processor(folder / "image_processor", IMAGE_SIDE)
    write_clip(folder / "text_encoder_2", write_clip_tokenizer(folder / "tokenizer_2"))
    write_scheduler(folder, SCHEDULER)


def write_llama_tokenizer(
    folder: Path, specials: Sequence[str] = LLAMA_SPECIALS, learned: Sequence[str] = (INSTRUCTION,) * 3, size: int = 800
) -> int:  # fmt: skip
    """Writes a tokenizer that knows the instruction's words; returns its number of tokens."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "pad_token": PAD,
        "padding_side": "right",
        "model_max_length": MAX_TEXT_TOKENS,
    }
    return write_byte_tokenizer(folder, settings, specials=specials, size=size, learned=learned, begin=BEGIN)


def write_clip_tokenizer(folder: Path) -> int:
    """Writes CLIP's tokenizer without any merged pairs: a token for every letter; returns their number."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *CLIP_SPECIALS]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_CLIP_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return len(words)


def write_llama(folder: Path, vocabulary: int) -> None:
    """Writes a LLaMA of four layers with random weights."""
    from transformers import LlamaModel

    _write_encoder(folder, LlamaModel(_llama_config(vocabulary)), "")


def _llama_config(vocabulary: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=LLAMA_CHANNELS,
        intermediate_size=2 * LLAMA_CHANNELS,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=None,
    )


def write_llava(folder: Path, vocabulary: int) -> None:
    """Writes a LLaVA of that LLaMA and a two-layer CLIP for images, its keys as they are published."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    sight = CLIPVisionConfig(
        hidden_size=IMAGE_CHANNELS,
        intermediate_size=2 * IMAGE_CHANNELS,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=2,
    )
    config = LlavaConfig(
        vision_config=sight,
        text_config=_llama_config(vocabulary),
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        pad_token_id=LLAVA_SPECIALS.index(PAD),
        image_seq_length=image_text.IMAGE_TOKENS,
    )
    module = LlavaForConditionalGeneration(config)
    names = {
        "model.vision_tower.vision_model.": "vision_tower.vision_model.",
        "model.vision_tower.": "vision_tower.vision_model.",
    }
    names |= {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
    tensors = {}
    for key, value in module.state_dict().items():
        old = next(name for name in names if key.startswith(name))
        tensors[names[old] + key.removeprefix(old)] = value.contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    config.to_json_file(folder / "config.json", use_diff=False)


def write_clip(folder: Path, vocabulary: int) -> None:
    """Writes CLIP's text half, two layers with random weights, its keys prefixed as they are published."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=CLIP_CHANNELS,
        intermediate_size=2 * CLIP_CHANNELS,
        projection_dim=CLIP_CHANNELS,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_CLIP_TOKENS,
        bos_token_id=0,
        eos_token_id=2,  # as published: the end is then where the token's number is largest
        pad_token_id=1,
    )
    _write_encoder(folder, CLIPTextModel(config), "text_model.")


def _write_encoder(folder: Path, module: Any, prefix: str) -> None:
    folder.mkdir(parents=True)
    tensors = {prefix + key.removeprefix(prefix): value.contiguous() for key, value in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    module.config.to_json_file(folder / "config.json", use_diff=False)
