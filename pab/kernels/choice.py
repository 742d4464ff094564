"""Which fused operations a pass uses: decided by device, precision and size before the blocks run, and logged once.

The decision is a frozen value of booleans that the blocks take as constants, so it costs no graph and no test inside one.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pab.kernels import flash3, temporal_attention

LOG = logging.getLogger(__name__)
NARROW = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The fused operations of one pass; all False is plain torch.

    `temporal`: attention over frames. `cross`: attention to text whose rows differ in length (without a mask torch's own is
    faster). `flash3`: self attention within a frame by FlashAttention-3. `head_norm`: query and key norm before it. `norm`:
    residual sums and modulated norm. `gelu`: the MLP's GELU in the matrix product. `gated`: gates that all tokens share, in
    the weights of the products before them. `summed`, with it: what is not kept is added to the tokens by its product.
    `gelu8`: of 8-bit floats, the MLP's GELU and rounding in its first product.
    """

    temporal: bool = False
    cross: bool = False
    flash3: bool = False
    head_norm: bool = False
    norm: bool = False
    gelu: bool = False
    gated: bool = False
    summed: bool = False
    gelu8: bool = False


PLAIN = Kernels()
MEASURED_FASTER = Kernels(
    temporal=True, cross=True, flash3=True, head_norm=True, norm=True, gelu=True, gated=True, summed=True, gelu8=True,
)  # fmt: skip
"""What is faster than torch's compiled own on an H200 (docs/performance.md)."""


class ChooseKernels(Protocol):
    """Says which kernels a pass uses. `num_frames`: what a temporal attention spans, all ranks' together."""

    def __call__(self, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_frames: int) -> Kernels:
        """Returns the kernels of a pass."""


def plain(*, device: torch.device, dtype: torch.dtype, head_dim: int, num_frames: int) -> Kernels:
    """Chooses torch's own."""
    return PLAIN


def fastest(*, device: torch.device, dtype: torch.dtype, head_dim: int, num_frames: int) -> Kernels:
    """Chooses what was measured to be faster; what a GPU cannot use is logged once, with the reason.

    Training, float32 and other devices are plain.
    """
    if device.type != "cuda" or dtype not in NARROW or torch.is_grad_enabled():
        return PLAIN
    if importlib.util.find_spec("triton") is None:
        _tell("triton is not installed: attention and norms run unfused and slower; pip install triton")
        return replace(PLAIN, gelu=True)
    wanted = MEASURED_FASTER
    if not 16 <= head_dim <= MAX_HEAD_DIM or head_dim % 8:
        _tell(f"head size {head_dim}: the fused attentions take multiples of 8 from 16 to {MAX_HEAD_DIM}")
        wanted = replace(wanted, temporal=False, cross=False, flash3=False, head_norm=False)
    fits_flash3 = dtype == torch.bfloat16 and flash3.runs_on(device)
    if fits_flash3 and not flash3.installed():
        _tell("fa3-fwd is not installed: spatial attention is slower; pip install 'pab-pipeline[hopper]'")
    if not (fits_flash3 and flash3.installed()):
        wanted = replace(wanted, flash3=False)
    if not flash3.runs_on(device):
        # Their tiles are for the memory of a Hopper GPU's processors, and copied by its hardware.
        wanted = replace(wanted, gelu8=False)
    if num_frames > temporal_attention.MAX_FRAMES:
        _tell(f"{num_frames} latent frames: the fused temporal attention takes up to {temporal_attention.MAX_FRAMES}")
        wanted = replace(wanted, temporal=False)
    return wanted


@functools.lru_cache(maxsize=64)
def _tell(message: str) -> None:
    LOG.warning("%s", message)
