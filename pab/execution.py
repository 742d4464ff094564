"""How a family's passes are run: blocks compiled or not, and which attention kernel is preferred. Free of torch.

Neither changes what is computed, but both change how it is rounded, in bfloat16 visibly so: what is not the plain way
(eager blocks, torch's own choice of kernel) is part of what a clip's digest covers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pab.family import Family

ATTENTION_CHOICES = ("auto", "default", "cudnn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """`compiled`: every block is a compiled graph per step pattern. `attention`: "default" (torch's choice) or "cudnn"."""

    compiled: bool = False
    attention: str = "default"

    @property
    def identity(self) -> str:
        """What a clip's digest holds of it, after weights and precision; empty for the plain way."""
        words = (" compiled" if self.compiled else "", f" attention {self.attention}")
        return words[0] + (words[1] if self.attention != "default" else "")


def execution_of(family: Family, *, compiled: bool, attention: str, device: str) -> Execution:
    """Returns how a run's settings run one family.

    `compiled` counts for families whose blocks are whole graphs. `attention` "auto" prefers cuDNN where compiled blocks
    on a GPU have heads of a size at which it was measured to be faster.
    """
    compiles = compiled and family.compiles
    if attention == "auto":
        attention = "cudnn" if compiles and device == "cuda" and family.prefers_cudnn else "default"
    return Execution(compiled=compiles, attention=attention)
