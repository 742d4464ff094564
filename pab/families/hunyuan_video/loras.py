"""How LoRAs name the modules of a HunyuanVideo transformer: as its own repository does. No torch here.

In blocks of one stream the MLP's first matrix is joined to queries, keys and values.
"""

from __future__ import annotations

from pab.library.two_stream_names import two_stream_names
from pab.weights.lora import LoraRules

_ONE = "single_transformer_blocks.{}."
_SINGLE = {
    "linear2": "proj_out",
    "modulation.linear": "norm.linear",
    "modulation.lin": "norm.linear",
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
}
_EMBEDDED = {
    "time_in.mlp.0": "timestep_embedder.linear_1",
    "time_in.mlp.2": "timestep_embedder.linear_2",
    "guidance_in.mlp.0": "guidance_embedder.linear_1",
    "guidance_in.mlp.2": "guidance_embedder.linear_2",
    "vector_in.in_layer": "text_embedder.linear_1",
    "vector_in.out_layer": "text_embedder.linear_2",
}
HUNYUAN_VIDEO_LORAS = LoraRules(
    names={
        **two_stream_names(),
        "single_blocks.{}.linear1": tuple(_ONE + m for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        **{f"single_blocks.{{}}.{original}": (_ONE + module,) for original, module in _SINGLE.items()},
        **{original: (f"time_text_embed.{module}",) for original, module in _EMBEDDED.items()},
    }
)
