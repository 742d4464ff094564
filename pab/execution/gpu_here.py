"""Whether this process has a GPU, and if not, why and what to do."""

from __future__ import annotations

import torch


def why_no_gpu() -> str | None:
    """Returns why torch finds no GPU in this process, in words with what to do; None where it finds one."""
    if torch.cuda.device_count() > 0:
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        why = "it is built without CUDA; install one that is built with it"
    else:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        why = f"a variable such as CUDA_VISIBLE_DEVICES hides it, or the driver is older than {built}; ask `doctor`"
    return f"torch {torch.__version__} finds no GPU here: {why}, or say --device cpu"
