"""Where LTX-Video's weights are. No torch here."""

from __future__ import annotations

from pab.weights.folders import library_layout

LTX_WEIGHTS = library_layout("Lightricks/LTX-Video", text_encoder="T5 1.1 XXL")
LTX_2B_WEIGHTS = library_layout("Lightricks/LTX-Video-0.9.5", text_encoder="T5 1.1 XXL")
LTX_13B_WEIGHTS = library_layout("Lightricks/LTX-Video-0.9.7-dev", text_encoder="T5 1.1 XXL")
LTX_13B_DISTILLED_WEIGHTS = library_layout("Lightricks/LTX-Video-0.9.8-13B-distilled", text_encoder="T5 1.1 XXL")
