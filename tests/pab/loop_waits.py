"""Finds what would make the host wait for the device inside the denoising loop, on a CPU or on a GPU."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    # .item(), int(), float(), bool(): what they are in inference mode, and what else
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    # sizes that values decide
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.unique_dim.default,
}


class WaitsForDeviceError(AssertionError):
    """An operator whose answer the host needs was called."""


class NoWaits(TorchDispatchMode):
    """Fails on operators that read a value of the device back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING or (func is torch.ops.aten.index.Tensor and any(_is_mask(each) for each in args[1])):
            raise WaitsForDeviceError(str(func))
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


@contextmanager
def no_waits(device: torch.device):
    """On a GPU CUDA itself tells of every wait; elsewhere the operators are watched."""
    if device.type == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    with NoWaits():
        yield


@dataclass
class WatchedLoop:
    """A model whose loop is watched from its first step until its latents are gathered."""

    model: object
    device: torch.device
    steps: int = 0

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def scheduler(self, request, sp):
        return WatchedScheduler(self.model.scheduler(request, sp), self)

    def predict(self, *args) -> Tensor:
        self.steps += 1
        with no_waits(self.device):
            return self.model.predict(*args)


@dataclass
class WatchedScheduler:
    scheduler: object
    loop: WatchedLoop

    def __getattr__(self, name: str):
        return getattr(self.scheduler, name)

    def advance(self, *args) -> Tensor:
        with no_waits(self.loop.device):
            return self.scheduler.advance(*args)

    def model_input(self, *args) -> Tensor:
        with no_waits(self.loop.device):
            return self.scheduler.model_input(*args)
