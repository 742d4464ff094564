"""Stands for NVIDIA's module where there is no GPU."""

import itertools
import os
from dataclasses import dataclass, field

import torch

from jobs.rendering.energy import NvmlCounter


@dataclass
class Nvml:
    """Stands for NVIDIA's module: one GPU, which uses 10 J between two looks at it."""

    name: str = "GPU-1"
    broken: bool = False
    millijoules: itertools.count = field(default_factory=lambda: itertools.count(5_000_000, 10_000))

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        return

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if name != self.name:
            raise self.NVMLError("not found")
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == "handle"
        if self.broken:
            raise self.NVMLError("not supported")
        return next(self.millijoules)


def counting(device: torch.device) -> NvmlCounter:
    name = f"GPU-of-{os.getpid()}"
    return NvmlCounter(Nvml(name), name)
