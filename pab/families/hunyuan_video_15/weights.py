"""Where the weights of HunyuanVideo 1.5 are, in the layout of the diffusers library. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published


def _published(name: str) -> Published:
    return Published(
        hub_id=f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{name}",
        revision="main",
        components={
            "transformer": "config.json, weights",
            "vae": "config.json, weights",
            "text_encoder": "config.json, weights (Qwen2.5-VL 7B, the language half)",
            "tokenizer": "tokenizer.json, tokenizer_config.json with the chat template",
            "text_encoder_2": "config.json, weights (ByT5 small, of Glyph-SDXL-v2)",
            "tokenizer_2": "tokenizer_config.json",
            "scheduler": "scheduler_config.json",
        },
    )


WEIGHTS_480P, WEIGHTS_720P = _published("480p_t2v"), _published("720p_t2v")
