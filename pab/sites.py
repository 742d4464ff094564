"""The broadcast sites of the transformers, by depth alone, so that planning needs no model code."""

from __future__ import annotations

from collections.abc import Mapping

from pab.plan import Site

PARTS = ("attn", "cross_attn", "mlp")
"""Of an STDiT3 block."""
LATTE_PARTS = {"spatial": ("attn1", "attn2", "ff"), "temporal": ("attn1", "ff")}
LATTE_STACKS = {"spatial": "transformer_blocks", "temporal": "temporal_transformer_blocks"}
_KINDS = {"attn1": "spatial", "attn2": "cross", "ff": "mlp"}
_THERE_AND_BACK = 2
"""All-to-alls of an attention that needs another split than the rest: to it, and back."""


def stdit3_sites(depth: int) -> tuple[Site, ...]:
    """Returns the sites of an STDiT3 in the order in which they run."""
    return tuple(
        Site(
            name=f"{stack}_blocks.{i}.{part}",
            kind=kind,
            stack=stack,
            block=i,
            all_to_alls=_THERE_AND_BACK if kind == "temporal" else 0,
        )
        for i in range(depth)
        for stack in ("spatial", "temporal")
        for part, kind in zip(PARTS, (stack, "cross", "mlp"), strict=True)
    )


def latte_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of Latte-1 or Open-Sora-Plan 1.1.0 in the order in which they run."""
    return tuple(
        Site(
            name=f"{LATTE_STACKS[stack]}.{i}.{part}",
            kind=stack if part == "attn1" else _KINDS[part],
            stack=stack,
            block=i,
            all_to_alls=_THERE_AND_BACK if (stack, part) == ("temporal", "attn1") else 0,
        )
        for i in range(num_layers)
        for stack, parts in LATTE_PARTS.items()
        for part in parts
    )


def open_sora_plan_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of Open-Sora-Plan 1.2.0 in running order; its 3-D self attention is of kind spatial."""
    return tuple(
        Site(
            name=f"transformer_blocks.{i}.{part}",
            kind=kind,
            stack="spatial",
            block=i,
            all_to_alls=_THERE_AND_BACK if part == "attn1" else 0,
        )
        for i in range(num_layers)
        for part, kind in _KINDS.items()
    )


def wan_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of a Wan transformer in running order; its 3-D self attention is of kind spatial."""
    return _block_sites("blocks", num_layers, {"attn1": "spatial", "attn2": "cross", "ffn": "mlp"})


def cogvideox_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of a CogVideoX transformer in running order; its joint attention is of kind spatial."""
    return _block_sites("transformer_blocks", num_layers, {part: _KINDS[part] for part in ("attn1", "ff")})


def ltx_sites(num_layers: int) -> tuple[Site, ...]:
    """Returns the sites of an LTX-Video transformer in running order; its 3-D self attention is of kind spatial."""
    return _block_sites("transformer_blocks", num_layers, _KINDS)


def hunyuan_video_sites(num_layers: int, num_single_layers: int) -> tuple[Site, ...]:
    """Returns the sites of a HunyuanVideo transformer in running order; its joint attention is of kind spatial.

    The blocks of one stream come after those of two and are counted on. Their MLP shares its last product with the
    attention, so it is no site.
    """
    two_streams = _block_sites("transformer_blocks", num_layers, {"attn": "spatial", "ff": "mlp", "ff_context": "mlp"})
    one_stream = tuple(
        Site(
            name=f"single_transformer_blocks.{i}.attn",
            kind="spatial",
            stack="spatial",
            block=num_layers + i,
            all_to_alls=_THERE_AND_BACK,
        )
        for i in range(num_single_layers)
    )
    return two_streams + one_stream


def _block_sites(blocks: str, num_layers: int, kinds: Mapping[str, str]) -> tuple[Site, ...]:
    return tuple(
        Site(
            name=f"{blocks}.{i}.{part}",
            kind=kind,
            stack="spatial",
            block=i,
            all_to_alls=_THERE_AND_BACK if kind == "spatial" else 0,
        )
        for i in range(num_layers)
        for part, kind in kinds.items()
    )
