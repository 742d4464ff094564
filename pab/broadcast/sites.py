"""Sites: the places in a transformer whose output may be kept and reused. The depth gives them; no model is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pab.broadcast.rules import KINDS

PART_KINDS: Mapping[str, str] = {"attn1": "spatial", "attn2": "cross", "ff": "mlp"}
"""Name of a block's part, as in most published transformers -> kind of its site; in running order."""
THERE_AND_BACK = 2
"""All-to-alls of an attention whose tokens are split differently from the rest of the block: one there, one back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place in a model whose output PAB may keep.

    `name`: the module path (`spatial_blocks.3.attn`). `kind`: one of `KINDS`. `stack`: the stack of blocks that it belongs
    to ("spatial" or "temporal"). `block`: the block's index in that stack. `all_to_alls`: how many it makes on several
    ranks when it computes; a reused site makes none.
    """

    name: str
    kind: str
    stack: str
    block: int
    all_to_alls: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"site {self.name}: kind={self.kind!r}, allowed {', '.join(KINDS)}")


def block_sites(blocks: str, num_layers: int, kinds: Mapping[str, str]) -> tuple[Site, ...]:
    """Returns the sites of `num_layers` equal blocks in running order. `kinds`: part of a block -> kind of its site.

    `blocks`: the module path of the list of blocks. Spatial attention is over all tokens, so it makes all-to-alls.
    """
    return tuple(
        Site(
            name=f"{blocks}.{i}.{part}",
            kind=kind,
            stack="spatial",
            block=i,
            all_to_alls=THERE_AND_BACK if kind == "spatial" else 0,
        )
        for i in range(num_layers)
        for part, kind in kinds.items()
    )
