"""Parts of published models that the diffusers library builds: loaded strictly, and its schedulers as samplers of a clip."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pab.library.lora import lora_changes
from pab.weights.checkpoint import CheckpointError, checked_config, load_module, read_tensors
from pab.weights.lora import Lora, LoraRules


def library_class(name: str, module: str = "diffusers") -> Any:
    """Returns a class of the library. Raises CheckpointError where the library is absent or has none of the name.

    `module`: where the class is, if the library does not offer it at its top.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError(f"{name} needs diffusers; pip install 'pab-pipeline[models]'") from error
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
    loras: Sequence[Lora] = (),
    lora_rules: LoraRules | None = None,
    module: str = "diffusers",
) -> Any:
    """Loads a module whose class `needed["_class_name"]` names (`library_class`), with every key and shape checked.

    `compute_buffers` makes real what the module computes itself and no file holds. What the library keeps in float32
    stays so. `loras` are added to its weights; `lora_rules` say how they may name them. Raises CheckpointError naming files
    and keys.
    """
    config = checked_config(folder, needed)
    module_class = library_class(str(needed["_class_name"]), module)

    def build() -> nn.Module:
        built = module_class.from_config(config)
        with torch.device("cpu"):
            compute_buffers(built)
        return cast(nn.Module, built)

    tensors = read_tensors(folder)
    loaded = load_module(
        build,
        tensors,
        what=f"{needed['_class_name']} in {folder}",
        dtype=dtype,
        device=device,
        float32_parts=tuple(module_class._keep_in_fp32_modules or ()),
        changes=lora_changes(loras, tensors, lora_rules or LoraRules()) if loras else None,
    )
    return loaded.to(device)


@dataclass(kw_only=True)
class LibrarySampler:
    """A scheduler of the library for one clip: it keeps what it needs of earlier steps, and ends with the clip.

    `guidance`: the guidance scale of every step, where it is not the clip's own at all of them. `noise_seed`: of the noise
    that the scheduler adds after steps; None for one that adds none.
    """

    scheduler: Any
    timesteps: tuple[float, ...]
    init_noise_sigma: float = field(default=1.0)
    guidance: tuple[float, ...] = ()
    noise_seed: int | None = None
    generator: torch.Generator | None = None

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents as they are: flow matching and the schedulers with zero terminal SNR scale nothing."""
        return latents

    def active_frames(self, step: int) -> None:
        """Returns None: all frames are generated."""

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after the step."""
        drawn = {} if self.noise_seed is None else {"generator": self.noise_behind(latents)}
        return self.scheduler.step(prediction, self.scheduler.timesteps[step], latents, return_dict=False, **drawn)[0]

    def noise_behind(self, latents: Tensor) -> torch.Generator:
        """Returns what draws the noise after steps: on the CPU, from the clip's seed, behind its initial noise.

        Every rank holds the whole latents, and so draws the same.
        """
        if self.generator is None:
            assert self.noise_seed is not None, "this sampler adds noise"
            self.generator = torch.Generator().manual_seed(self.noise_seed)
            torch.randn(latents.shape, generator=self.generator)  # the initial noise, drawn by `initial_noise`
        return self.generator


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLevels:
    """A clip's noise levels, and what the library's scheduler needs to come to them.

    `planned`: the timesteps of its steps. `given`: what the published pipeline gives the scheduler besides the number of
    steps. `changes` are made to its configuration; `scheduler` is the configuration of another one, in its place. `sampler`:
    the class that drives it, if not the model's own. `guidance`, `noise_seed`: those of the sampler.
    """

    planned: tuple[float, ...]
    given: Mapping[str, object] = field(default_factory=dict)
    changes: Mapping[str, object] = field(default_factory=dict)
    scheduler: Mapping[str, object] | None = None
    sampler: type[LibrarySampler] | None = None
    guidance: tuple[float, ...] = ()
    noise_seed: int | None = None


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
        config = {**self.config, **levels.changes} if levels.scheduler is None else levels.scheduler
        scheduler = library_class(str(config["_class_name"])).from_config(config)
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
        make = self.make if levels.sampler is None else levels.sampler
        return make(
            scheduler=scheduler,
            timesteps=levels.planned,
            guidance=levels.guidance,
            noise_seed=levels.noise_seed,
        )
