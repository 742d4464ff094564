"""Loads a video model that the diffusers library builds, from the description that its family's `load.py` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.broadcast.sites import Site
from pab.family import ClipRequest, LoadRequest
from pab.library.attention import SelfAttention
from pab.library.broadcast_module import LATENTS, CurrentPass, install_sites, place_blocks
from pab.library.image import EncodeImage
from pab.library.parts import ClipLevels, LibrarySampler, SchedulerSource, load_part
from pab.library.sequence import exchange_tokens, library_plan
from pab.library.sequence_hooks import SequencePlan, Split, install_splits, with_inputs
from pab.library.vae import TiledCodec
from pab.library.video import DiffusersVideo
from pab.model import StepInput
from pab.text.states import TextStates
from pab.text.t5_text import T5Text, open_t5_text
from pab.weights.checkpoint import checked_config, dtype_of
from pab.weights.lora import Lora, LoraRules

CHECKED_STEPS = 10
"""Of a clip of default size, whose planned levels are compared with the scheduler's when a model is loaded."""


Size = tuple[int, int, int]
"""Frames, height and width of a clip, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BroadcastParts:
    """What is put into a transformer of the library so that its passes broadcast and are shared by ranks.

    `sites`, `attention`, `plan`: what is broadcast, the processor of sites that exchange tokens, and where passes are split
    (None: by the library's own plan). `splits`: inputs of the transformer that are split besides those of the plan.
    `streams`: the parameters of a block that take the streams of tokens which it returns; of them the transformer reads the
    first `read_streams` after its blocks.
    """

    sites: Sequence[Site]
    attention: Callable[..., Callable[..., Any]] = SelfAttention
    plan: SequencePlan | None = None
    splits: Mapping[str, Split] = field(default_factory=dict)
    streams: tuple[str, ...] = (LATENTS,)
    read_streams: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryModel(BroadcastParts):
    """What a family says of one published model. The three configurations are what its files must say.

    `levels(num_steps, size)`: the noise levels of a clip; `default_size`: that for which
    they are checked. `encode_text(root, request)` opens the text encoder; `prepare_text(states, dtype, device)`
    makes what `denoiser(experts=..., dtype=...)` is given as text. `codec(vae, dtype)` is the decoder of a loaded VAE, which
    has the model's precision unless `vae_dtype` names another. `loras`: what LoRAs may change; its components are the
    transformers in their order.

    `encode_image(root, request, vae, dtype)`: opens what encodes the image that a clip begins with, beside a VAE of type
    `dtype`.
    """

    transformer: Mapping[str, object]
    vae: Mapping[str, object]
    scheduler: Mapping[str, object]
    levels: Callable[[int, Size], ClipLevels]
    default_size: Size
    encode_text: Callable[[Path, LoadRequest], Callable[[Sequence[str]], TextStates]]
    prepare_text: Callable[[TextStates, torch.dtype, torch.device], object]
    denoiser: Callable[..., Callable[[Tensor, StepInput, Any], Tensor]]
    codec: Callable[[Any, torch.dtype], TiledCodec]
    guided_passes: tuple[str, ...]
    vae_dtype: torch.dtype | None = None
    compute_buffers: Callable[[Any], None] = lambda _module: None
    """Makes real what a transformer computes itself and no file holds."""
    encode_image: Callable[[Path, LoadRequest, Any, torch.dtype], EncodeImage] | None = None
    sampler: Callable[..., LibrarySampler] = LibrarySampler
    """What makes a clip's sampler of a scheduler, given by `scheduler=..., timesteps=...`."""
    clean: Callable[[str], str] = lambda text: text
    """From a clip's text to what the encoder reads."""
    loras: LoraRules = field(default_factory=LoraRules)
    chosen: Callable[[ClipRequest], ClipLevels | None] = lambda _clip: None
    """Returns the levels of a clip that chooses its sampling, None for one that is sampled as published."""


def load_library_model(
    model: LibraryModel, root: Path, request: LoadRequest, *, experts: Sequence[Path] | None = None
) -> DiffusersVideo:
    """Loads a whole model for inference. `experts`: the folders of its transformers, `root/transformer` unless given.

    Raises CheckpointError naming files, keys and values.
    """
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    current = CurrentPass()
    folders = experts or [root / "transformer"]
    loras = [[lora for lora in request.loras if lora.component == name] for name in model.loras.components]
    loaded = [
        _load_transformer(model, folder, dtype, device, current, loras=of_one)
        for folder, of_one in zip(folders, loras, strict=True)
    ]
    vae_dtype = model.vae_dtype or dtype
    vae = load_part(root / "vae", model.vae, dtype=vae_dtype, device=device)
    return DiffusersVideo(
        denoise=model.denoiser(experts=tuple(transformer for transformer, _ in loaded), dtype=dtype),
        current=current,
        block_stacks=tuple(stack for _, stacks in loaded for stack in stacks),
        encode_text=model.encode_text(root, request),
        prepare_text=lambda text: model.prepare_text(text, dtype, device),
        codec=model.codec(vae, vae_dtype),
        sampler=_sampler(model, root / "scheduler", device),
        guided_passes=model.guided_passes,
        clean=model.clean,
        encode_image=None if model.encode_image is None else model.encode_image(root, request, vae, vae_dtype),
    )


def _load_transformer(
    model: LibraryModel,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    current: CurrentPass,
    *,
    loras: Sequence[Lora],
) -> tuple[Any, tuple[nn.ModuleList, ...]]:
    transformer = load_part(
        folder,
        model.transformer,
        dtype=dtype,
        device=device,
        compute_buffers=model.compute_buffers,
        loras=loras,
        lora_rules=model.loras,
    )
    return transformer, install_broadcast(model, transformer, current)


def install_broadcast(model: BroadcastParts, transformer: Any, current: CurrentPass) -> tuple[nn.ModuleList, ...]:
    """Makes a plain transformer one whose passes broadcast and are shared by ranks; returns its stacks of blocks."""
    exchange_tokens(transformer, model.sites, model.attention(current=current))
    stacks = install_sites(transformer, model.sites, current)
    place_blocks(stacks, model.streams, model.read_streams)
    plan = library_plan(type(transformer)) if model.plan is None else model.plan
    install_splits(transformer, with_inputs(plan, model.splits), current)
    return stacks


def _sampler(model: LibraryModel, folder: Path, device: torch.device) -> Callable[[ClipRequest], LibrarySampler]:
    """Returns what makes a clip's sampler. Fails at once where the scheduler's levels are not the planned ones."""
    config = checked_config(folder, model.scheduler, "scheduler_config.json")
    source = SchedulerSource(folder=folder, config=config, device=device, make=model.sampler)
    source.sampler(model.levels(CHECKED_STEPS, model.default_size))

    def sampler(clip: ClipRequest) -> LibrarySampler:
        size = clip.num_frames, clip.height, clip.width
        return source.sampler(model.chosen(clip) or model.levels(clip.num_steps, size))

    return sampler


def t5_beside(root: Path, request: LoadRequest, **options: Any) -> T5Text:
    """Opens the T5 encoder in `root`, for a description's `encode_text`. `options`: those of `open_t5_text`."""
    folder, tokenizer_folder = root / "text_encoder", root / "tokenizer"
    return open_t5_text(request, folder=folder, tokenizer_folder=tokenizer_folder, **options)
