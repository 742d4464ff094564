"""How a family's passes are run: compiled blocks, preferred attention, fused kernels, kept outputs. Free of torch.

None changes what is computed, but all change how it is rounded, in bfloat16 visibly so. So everything but the plain way
(eager blocks, torch's own kernels) is part of a clip's digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from pab.family import Family

ATTENTION_CHOICES = ("auto", "default", "cudnn", "float8")
_OTHERS = ", ".join(choice for choice in ATTENTION_CHOICES if choice != "float8")
KEEP_CHOICES = ("full", "int8")
LINEARS_CHOICES = ("full", "float8")
DECODE_CHOICES = ("published", "fast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How the passes of one family run.

    `compiled`: every block is a compiled graph per step pattern. `attention`: "default" (torch's choice), "cudnn", or
    "float8" (self attention of 8-bit floats). `kernels`: fused operations where they were measured to be faster
    (`pab.kernels.choice.fastest`). `keep`: how outputs of sites lie in memory between steps: "full", or "int8" with a scale
    per token, in half of bfloat16's memory. `linears`: the blocks' matrix products are of the model's precision ("full"), or
    of 8-bit floats with a scale per row. `decode`: videos are decoded as their model was published ("published"), or in
    16 bits, in as few pieces as fit, and with compiled parts if blocks are ("fast"). `records`: loops that
    gain by it are CUDA graphs (`pab.sampling.recorded_sizes`); on whenever `kernels` is, for families that can.
    """

    compiled: bool = False
    attention: str = "default"
    kernels: bool = False
    keep: str = "full"
    linears: str = "full"
    records: bool = False
    decode: str = "published"

    @property
    def identity(self) -> str:
        """What a clip's digest holds of it, after weights and precision; empty for the plain way."""
        attention = f" attention {self.attention}" if self.attention != "default" else ""
        kernels = " kernels" if self.kernels else ""
        keep = f" keep {self.keep}" if self.keep != "full" else ""
        linears = f" linears {self.linears}" if self.linears != "full" else ""
        decode = f" decode {self.decode}" if self.decode != "published" else ""
        return f"{' compiled' if self.compiled else ''}{attention}{kernels}{keep}{linears}{decode}"


def execution_of(
    family: Family,
    *,
    compiled: bool,
    attention: str,
    device: str,
    precision: str,
    keep: str = "full",
    linears: str = "full",
    decode: str = "published",
) -> Execution:
    """Returns how a run's settings run one family.

    `compiled` counts for families whose blocks are whole graphs. `attention` "auto" prefers cuDNN where compiled blocks
    on a GPU have heads of a size at which it was measured to be faster. Fused kernels are for compiled blocks in bfloat16
    on a GPU, of families that have them; `decode` "fast" for families that have it. Raises ValueError for 8-bit products
    or attention of a family that has none.
    """
    if attention == "float8" and not family.float8_attention:
        raise ValueError(f"attention={attention!r}: {family.name} has no attention of 8-bit floats, only {_OTHERS}")
    if linears == "float8" and not family.float8:
        raise ValueError(f"linears={linears!r}: {family.name} has no 8-bit matrix products, only full")
    compiles = compiled and family.compiles
    if attention == "auto":
        attention = "cudnn" if compiles and device == "cuda" and family.prefers_cudnn else "default"
    kernels = compiles and device == "cuda" and precision == "bfloat16" and family.fused_kernels
    return Execution(
        compiled=compiles,
        attention=attention,
        kernels=kernels,
        keep=keep,
        linears=linears,
        records=kernels and family.records_loops,
        decode=decode if family.fast_decode else "published",
    )
