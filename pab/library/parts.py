"""Parts of published models that the diffusers library builds: loaded strictly, and its schedulers as samplers of a clip."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pab.weights.checkpoint import CheckpointError, checked_config, load_module, read_tensors


def library_class(name: str, module: str = "diffusers") -> Any:
    """Returns a class of the library. Raises CheckpointError where the library is absent or has none of the name.

    `module`: where the class is, if the library does not offer it at its top.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError(f"{name} needs diffusers; install the extra 'models'") from error
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError) as error:
        raise CheckpointError(f"diffusers {diffusers.__version__} has no {name}; install a newer version") from error


def load_part(
    folder: Path,
    needed: Mapping[str, object],
    *,
    dtype: torch.dtype,
    device: torch.device,
    compute_buffers: Callable[[Any], None] = lambda _module: None,
    module: str = "diffusers",
) -> Any:
    """Loads a module whose class `needed["_class_name"]` names (`library_class`), with every key and shape checked.

    `compute_buffers` makes real what the module computes itself and no file holds. What the library keeps in float32
    stays so. Raises CheckpointError naming files and keys.
    """
    config = checked_config(folder, needed)
    module_class = library_class(str(needed["_class_name"]), module)

    def build() -> nn.Module:
        built = module_class.from_config(config)
        with torch.device("cpu"):
            compute_buffers(built)
        return cast(nn.Module, built)

    loaded = load_module(
        build,
        read_tensors(folder),
        what=f"{needed['_class_name']} in {folder}",
        dtype=dtype,
        device=device,
        float32_parts=tuple(module_class._keep_in_fp32_modules or ()),
    )
    return loaded.to(device)


@dataclass(kw_only=True)
class LibrarySampler:
    """A scheduler of the library for one clip: it keeps what it needs of earlier steps, and ends with the clip."""

    scheduler: Any
    timesteps: tuple[float, ...]
    init_noise_sigma: float = field(default=1.0)

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents as they are: flow matching and the schedulers with zero terminal SNR scale nothing."""
        return latents

    def active_frames(self, step: int) -> None:
        """Returns None: all frames are generated."""

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after the step."""
        return self.scheduler.step(prediction, self.scheduler.timesteps[step], latents, return_dict=False)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLevels:
    """A clip's noise levels, and what the library's scheduler needs to come to them.

    `planned`: the timesteps of its steps. `given`: what the published pipeline gives the scheduler besides the number of
    steps. `changes` are made to its configuration.
    """

    planned: tuple[float, ...]
    given: Mapping[str, object] = field(default_factory=dict)
    changes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSource:
    """A scheduler as a published folder configures it; every clip gets a new one."""

    folder: Path
    config: Mapping[str, object]
    device: torch.device
    make: Callable[..., LibrarySampler] = LibrarySampler

    def sampler(self, levels: ClipLevels) -> LibrarySampler:
        """Returns a clip's sampler.

        Raises CheckpointError where the scheduler's timesteps are not the planned ones: broadcasting goes by the plan.
        """
        scheduler = library_class(str(self.config["_class_name"])).from_config({**self.config, **levels.changes})
        # Kept on the host: the library reads them one by one, and each would wait for the device.
        scheduler.set_timesteps(len(levels.planned), device="cpu", **levels.given)
        found = tuple(float(timestep) for timestep in scheduler.timesteps.tolist())
        if found != levels.planned:
            raise CheckpointError(
                f"{self.folder}/scheduler_config.json gives timesteps {found[:4]}..., this family plans "
                f"{levels.planned[:4]}...; use the published scheduler"
            )
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
            scheduler.sigmas = scheduler.sigmas.to(self.device)
        return self.make(scheduler=scheduler, timesteps=levels.planned)
