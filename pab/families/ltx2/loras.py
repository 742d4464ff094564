"""How LoRAs name the modules of an LTX-2 transformer: as its own repository does. No torch here."""

from __future__ import annotations

from pab.weights.lora import LoraRules

_MODULATIONS = {
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_PARTS = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
_BLOCK = "transformer_blocks.{}."
_NAMES = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    **{f"{original}.{part}": f"{module}.{part}" for original, module in _MODULATIONS.items() for part in _PARTS},
    **{f"{_BLOCK}{name}.{part}_norm": f"{_BLOCK}{name}.norm_{part}" for name in _ATTENTIONS for part in "qk"},
}
LTX2_LORAS = LoraRules(names={original: (module,) for original, module in _NAMES.items()})
