"""How LoRAs name the modules of a HunyuanVideo 1.5 transformer: as its own repository does. No torch here."""

from __future__ import annotations

from pab.library.two_stream_names import two_stream_names
from pab.weights.lora import LoraRules

_EMBEDDED = {
    "time_in.mlp.0": "time_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_embed.timestep_embedder.linear_2",
    # Of the text to be shown.
    "byt5_in.layernorm": "context_embedder_2.norm",
    "byt5_in.fc1": "context_embedder_2.linear_1",
    "byt5_in.fc2": "context_embedder_2.linear_2",
    "byt5_in.fc3": "context_embedder_2.linear_3",
    # Of image to video, which this family is not given; LoRAs may change it all the same.
    "vision_in.proj.0": "image_embedder.norm_in",
    "vision_in.proj.1": "image_embedder.linear_1",
    "vision_in.proj.3": "image_embedder.linear_2",
    "vision_in.proj.4": "image_embedder.norm_out",
    "cond_type_embedding": "cond_type_embed",
}
HUNYUAN_VIDEO_15_LORAS = LoraRules(
    names={**two_stream_names(), **{original: (module,) for original, module in _EMBEDDED.items()}}
)
