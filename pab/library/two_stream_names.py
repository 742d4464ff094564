"""How original repositories name what blocks of two streams have, and the refiner of their text. No torch here.

Queries, keys and values of a stream are rows of one matrix there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_TWO = "transformer_blocks.{}."
_REFINER = "context_embedder.token_refiner.refiner_blocks.{}."
Names = Mapping[str, tuple[str, ...]]
"""By a module's original name the modules of the library whose rows it joins; `{}` stands for a block's number."""


def two_stream_names() -> Names:
    """Returns the names of blocks, of the text's refiner, and of what stands before and behind them."""
    return dict(_names())


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
    text = "context_embedder.time_text_embed"
    for original, module in (
        ("img_in.proj", "x_embedder.proj"),
        ("txt_in.input_embedder", "context_embedder.proj_in"),
        ("txt_in.t_embedder.mlp.0", f"{text}.timestep_embedder.linear_1"),
        ("txt_in.t_embedder.mlp.2", f"{text}.timestep_embedder.linear_2"),
        ("txt_in.c_embedder.linear_1", f"{text}.text_embedder.linear_1"),
        ("txt_in.c_embedder.linear_2", f"{text}.text_embedder.linear_2"),
        ("final_layer.linear", "proj_out"),
    ):
        yield original, (module,)
