"""Where LTX-Video's weights are, in the layout of the diffusers library. No torch here."""

from __future__ import annotations

from pab.weights.checkpoint import Published

LTX_WEIGHTS = Published(
    hub_id="Lightricks/LTX-Video",
    revision="main",
    components={
        "transformer": "config.json, weights",
        "vae": "config.json, weights",
        "text_encoder": "config.json, weights (T5 1.1 XXL)",
        "tokenizer": "spiece.model or tokenizer.json",
        "scheduler": "scheduler_config.json",
    },
)
