"""How LoRAs name the modules of a Wan transformer: as Wan's own repository does. No torch here."""

from __future__ import annotations

from pab.weights.lora import LoraRules

_OF_BLOCK = {
    **{f"self_attn.{part}": f"attn1.to_{part}" for part in "qkv"},
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    **{f"cross_attn.{part}": f"attn2.to_{part}" for part in "qkv"},
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    # Of image to video: what attends to the image.
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",
    "modulation": "scale_shift_table",
}
_NAMES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}


def wan_loras(*, two_experts: bool) -> LoraRules:
    """Returns what LoRAs may change; with two experts each has its own."""
    blocks = {f"blocks.{{}}.{original}": (f"blocks.{{}}.{module}",) for original, module in _OF_BLOCK.items()}
    return LoraRules(
        components=("transformer", "transformer_2") if two_experts else ("transformer",),
        names=blocks | {original: (module,) for original, module in _NAMES.items()},
    )
