"""A clip beside itself without reuse: what stands of it in reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.quality.alike import psnr, ssim
from jobs.quality.vmaf import NoVmafError, vmaf

Frames = npt.NDArray[np.uint8]


def alike_facts(reference_THWC: Frames, frames_THWC: Frames, *, threads: int = 1) -> dict[str, Any]:
    """Returns PSNR, SSIM and VMAF of uint8 RGB frames against the same clip without reuse, as JSON values.

    `identical`: the frames are the same; then there is no PSNR (it is infinite) and no VMAF. `no_vmaf`: why there is none,
    else None. Raises ValueError when the shapes differ.
    """
    noise_db = psnr(reference_THWC, frames_THWC)
    identical = math.isinf(noise_db)
    score, why = None, None
    if not identical:
        try:
            score = round(vmaf(reference_THWC, frames_THWC, threads=threads), 2)
        except NoVmafError as error:
            why = str(error)
    return {
        "psnr_db": None if identical else round(noise_db, 3),
        "ssim": round(ssim(reference_THWC, frames_THWC), 5),
        "vmaf": score,
        "no_vmaf": why,
        "identical": identical,
    }
