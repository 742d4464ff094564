"""How LoRAs name the modules of an LTX-Video transformer: as its own repository does. No torch here."""

from __future__ import annotations

from pab.weights.lora import LoraRules

_NAMES = {
    "patchify_proj": "proj_in",
    "adaln_single.linear": "time_embed.linear",
    "adaln_single.emb.timestep_embedder.linear_1": "time_embed.emb.timestep_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2": "time_embed.emb.timestep_embedder.linear_2",
    **{
        f"transformer_blocks.{{}}.{attention}.{part}_norm": f"transformer_blocks.{{}}.{attention}.norm_{part}"
        for attention in ("attn1", "attn2")
        for part in "qk"
    },
}
LTX_LORAS = LoraRules(names={original: (module,) for original, module in _NAMES.items()})
