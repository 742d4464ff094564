"""How LoRAs name the modules of a HunyuanVideo transformer: as its own repository does. No torch here.

Its queries, keys and values are rows of one matrix, in blocks of one stream with the MLP's first matrix behind them.
"""

from __future__ import annotations

from collections.abc import Iterator

from pab.weights.lora import LoraRules

_TWO, _ONE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
_REFINER = "context_embedder.token_refiner.refiner_blocks.{}."


def _of_stream(stream: str, qkv: tuple[str, str, str], out: str, rest: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Returns the names of one stream in a block of two; the second spelling of a name is ComfyUI's."""
    names = {
        f"{stream}_attn_qkv": tuple(f"{_TWO}attn.{part}" for part in qkv),
        f"{stream}_attn.qkv": tuple(f"{_TWO}attn.{part}" for part in qkv),
        f"{stream}_attn_proj": (f"{_TWO}attn.{out}",),
        f"{stream}_attn.proj": (f"{_TWO}attn.{out}",),
    }
    return names | {f"{stream}_{original}": (f"{_TWO}{module}",) for original, module in rest.items()}


def _names() -> Iterator[tuple[str, tuple[str, ...]]]:
    for stream, suffix, added, qkv, out in (
        ("img", "", "", ("to_q", "to_k", "to_v"), "to_out.0"),
        ("txt", "_context", "added_", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out"),
    ):
        rest = {
            "attn_q_norm": f"attn.norm_{added}q",
            "attn_k_norm": f"attn.norm_{added}k",
            "mod.linear": f"norm1{suffix}.linear",
            "mod.lin": f"norm1{suffix}.linear",
            "mlp.fc1": f"ff{suffix}.net.0.proj",
            "mlp.fc2": f"ff{suffix}.net.2",
            "mlp.0": f"ff{suffix}.net.0.proj",
            "mlp.2": f"ff{suffix}.net.2",
        }
        for original, modules in _of_stream(stream, qkv, out, rest).items():
            yield f"double_blocks.{{}}.{original}", modules
    yield "single_blocks.{}.linear1", tuple(f"{_ONE}{m}" for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    for original, module in (
        ("linear2", "proj_out"),
        ("modulation.linear", "norm.linear"),
        ("modulation.lin", "norm.linear"),
        ("q_norm", "attn.norm_q"),
        ("k_norm", "attn.norm_k"),
    ):
        yield f"single_blocks.{{}}.{original}", (f"{_ONE}{module}",)
    refiner = "txt_in.individual_token_refiner.blocks.{}."
    yield f"{refiner}self_attn_qkv", tuple(f"{_REFINER}attn.to_{part}" for part in "qkv")
    for original, module in (
        ("self_attn_proj", "attn.to_out.0"),
        ("mlp.fc1", "ff.net.0.proj"),
        ("mlp.fc2", "ff.net.2"),
        ("adaLN_modulation.1", "norm_out.linear"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    ):
        yield f"{refiner}{original}", (f"{_REFINER}{module}",)
    for original, module in (
        ("img_in.proj", "x_embedder.proj"),
        ("txt_in.input_embedder", "context_embedder.proj_in"),
        ("final_layer.linear", "proj_out"),
    ):
        yield original, (module,)
    for original, module, first, second in (
        ("time_in.mlp", "time_text_embed.timestep_embedder", "0", "2"),
        ("guidance_in.mlp", "time_text_embed.guidance_embedder", "0", "2"),
        ("vector_in", "time_text_embed.text_embedder", "in_layer", "out_layer"),
        ("txt_in.t_embedder.mlp", "context_embedder.time_text_embed.timestep_embedder", "0", "2"),
        ("txt_in.c_embedder", "context_embedder.time_text_embed.text_embedder", "linear_1", "linear_2"),
    ):
        yield f"{original}.{first}", (f"{module}.linear_1",)
        yield f"{original}.{second}", (f"{module}.linear_2",)


HUNYUAN_VIDEO_LORAS = LoraRules(names=dict(_names()))
