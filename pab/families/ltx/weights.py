"""Where LTX-Video's weights are. No torch here."""

from __future__ import annotations

from pab.weights.folders import library_layout

LTX_WEIGHTS = library_layout("Lightricks/LTX-Video", text_encoder="T5 1.1 XXL")
