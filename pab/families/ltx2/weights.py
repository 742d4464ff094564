"""Where LTX-2's weights are. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published

LTX2_WEIGHTS = Published(
    hub_id="Lightricks/LTX-2",
    revision="main",
    components={
        "transformer": "config.json, weights",
        "vae": "config.json, weights",
        "audio_vae": "config.json, weights",
        "vocoder": "config.json, weights",
        "connectors": "config.json, weights",
        "text_encoder": "config.json, weights (Gemma 3 12B)",
        "tokenizer": "tokenizer.json, tokenizer_config.json",
        "scheduler": "scheduler_config.json",
    },
)
