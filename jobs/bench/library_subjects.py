"""Models of the diffusers library that are timed: their published sizes with random weights, and the clips they render."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from jobs.bench.subjects import (
    DTYPES,
    FULL,
    MAKERS,
    TEXT_TOKENS,
    LatentsOnly,
    RandomText,
    Subject,
    precision_on,
    request_of,
)
from pab.broadcast.sites import Site
from pab.families import FAMILIES
from pab.families.cogvideox.config import COGVIDEOX_5B_MODEL
from pab.families.cogvideox.load import cogvideox_library_model
from pab.families.cogvideox.sites import cogvideox_sites
from pab.families.hunyuan_video.config import HUNYUAN_VIDEO_MODEL
from pab.families.hunyuan_video.load import hunyuan_library_model
from pab.families.hunyuan_video.sites import hunyuan_video_sites
from pab.families.ltx.config import LTX_MODEL
from pab.families.ltx.load import ltx_library_model
from pab.families.ltx.sites import ltx_sites
from pab.families.wan.config import WAN_14B_MODEL, WAN_MODEL, WanModel
from pab.families.wan.load import wan_library_model
from pab.families.wan.sites import wan_sites
from pab.library.broadcast_module import CurrentPass
from pab.library.load import LibraryModel, install_broadcast
from pab.library.parts import SchedulerSource, library_class
from pab.library.video import DiffusersVideo
from pab.weights.checkpoint import load_module


@dataclass(frozen=True, slots=True, kw_only=True)
class LibrarySubject:
    """One published model at two sizes. `describe`: how it is loaded, and its sites, by depth.

    `full`, `tiny`: configurations of the transformer as far as they are not its class's defaults. `clip`: what differs from
    the family's default clip, and `tiny_clip` for tiny models. `words`: text tokens that are read, and of how many
    `full_text` and `tiny_text` are the channels. `frames`, `pixels`, `channels`: of latents.
    """

    family: str
    describe: Callable[[int], LibraryModel]
    full: Mapping[str, Any]
    tiny: Mapping[str, Any]
    full_text: int
    tiny_text: int
    words: int
    clip: Mapping[str, int] = field(default_factory=dict)
    tiny_clip: Mapping[str, int]
    frames: int = 4
    pixels: int = 8
    channels: int = 16
    pooled: str | None = None
    """The configuration's key of the width of a second text encoder's vector."""
    added_scheduler: Mapping[str, Any] = field(default_factory=dict)
    """What the published scheduler says besides what the family asks of it."""

    def config(self, size: str) -> Mapping[str, Any]:
        """Returns the transformer's configuration."""
        return self.full if size == FULL else self.tiny

    def described(self, size: str) -> LibraryModel:
        """Returns how the model of a size is loaded."""
        return self.describe(int(self.config(size)["num_layers"]))

    def transformer(self, size: str, device: torch.device) -> nn.Module:
        """Returns a plain transformer of the library with random weights, the same on every rank."""
        described, dtype = self.described(size), DTYPES[precision_on(device)]
        name = str(described.transformer["_class_name"])
        return random_part(name, self.config(size), dtype, device, described.compute_buffers)

    def model(self, transformer: nn.Module, size: str, device: torch.device, *, sites: bool = True) -> DiffusersVideo:
        """Returns the model around a transformer; without `sites` the library's own passes, which reuse nothing."""
        described, dtype, current = self.described(size), DTYPES[precision_on(device)], CurrentPass()
        config = self.config(size)
        source = SchedulerSource(
            folder=Path("bench"), config={**described.scheduler, **self.added_scheduler}, device=device
        )
        return DiffusersVideo(
            denoise=described.denoiser(experts=(transformer,), dtype=dtype),
            current=current,
            block_stacks=install_broadcast(described, transformer, current) if sites else (),
            encode_text=RandomText(
                shape=(self.words, self.full_text if size == FULL else self.tiny_text),
                tokens=TEXT_TOKENS[size],
                device=device,
                dtype=dtype,
                pooled=None if self.pooled is None else int(config[self.pooled]),
            ),
            prepare_text=lambda text: described.prepare_text(text, dtype, device),
            codec=LatentsOnly(
                frames=lambda num_frames: (num_frames - 1) // self.frames + 1,
                channels=self.channels,
                pixels=self.pixels,
            ),
            sampler=lambda clip: source.sampler(
                described.chosen(clip) or described.levels(clip.num_steps, (clip.num_frames, clip.height, clip.width))
            ),
            guided_passes=described.guided_passes,
        )

    def make(self, size: str, device: torch.device) -> Subject:
        """Returns the model on a device, with its clips."""
        family = FAMILIES[self.family]
        changes = {"num_steps": 10} | dict(self.clip if size == FULL else self.tiny_clip)
        return Subject(
            family=family,
            model=self.model(self.transformer(size, device), size, device),
            sites=tuple(self.described(size).sites),
            requests=(request_of(family, **changes),),
            precision=precision_on(device),
            device=device,
        )


def random_part(
    name: str,
    config: Mapping[str, object],
    dtype: torch.dtype,
    device: torch.device,
    compute_buffers: Callable[[nn.Module], None] = lambda _module: None,
) -> nn.Module:
    """Returns a module of the diffusers library with random matrices, in the precisions in which it is loaded."""
    module_class = library_class(name)

    def build() -> nn.Module:
        module: nn.Module = module_class.from_config(dict(config))
        with torch.device("cpu"):
            compute_buffers(module)
        return module

    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build().state_dict().items()}
    kept = tuple(module_class._keep_in_fp32_modules or ())
    with device:
        tensors = {
            key: torch.randn(shape, dtype=dtype) * shape[1:].numel() ** -0.5 if len(shape) > 1
            else torch.full(shape, float(key.endswith("weight")))
            for key, shape in shapes.items()
        }  # fmt: skip
    return load_module(build, tensors, what=name, dtype=dtype, device=device, float32_parts=kept).to(device)


def _with(model: LibraryModel, sites: tuple[Site, ...]) -> LibraryModel:
    return replace(model, sites=sites)


_WAN = {"patch_size": [1, 2, 2], "in_channels": 16, "out_channels": 16, "attention_head_dim": 128, "text_dim": 4096}
_TINY_WAN = {
    **_WAN, "attention_head_dim": 12, "text_dim": 32, "num_attention_heads": 2, "ffn_dim": 48, "num_layers": 2,
    "freq_dim": 32,
}  # fmt: skip


def _wan(model: WanModel, sizes: Mapping[str, int]) -> LibrarySubject:
    return LibrarySubject(
        family=model.name,
        describe=lambda depth: _with(wan_library_model(model), wan_sites(depth)),
        full={**_WAN, **sizes, "num_layers": model.num_layers},
        tiny=_TINY_WAN,
        full_text=4096,
        tiny_text=32,
        words=512,
        clip={"height": 480, "width": 832},
        tiny_clip={"num_frames": 9, "height": 32, "width": 32},
    )


LIBRARY_SUBJECTS: Mapping[str, LibrarySubject] = {
    "wan": _wan(WAN_MODEL, {"num_attention_heads": 12, "ffn_dim": 8960}),
    "wan_14b": _wan(WAN_14B_MODEL, {"num_attention_heads": 40, "ffn_dim": 13824}),
    "hunyuan_video": LibrarySubject(
        family="hunyuan_video",
        describe=lambda depth: _with(hunyuan_library_model(HUNYUAN_VIDEO_MODEL), hunyuan_video_sites(depth, 2 * depth)),
        full={
            "num_layers": HUNYUAN_VIDEO_MODEL.num_layers, "num_single_layers": HUNYUAN_VIDEO_MODEL.num_single_layers,
            "guidance_embeds": True, "pooled_projection_dim": 768,
        },
        tiny={
            "num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
            "attention_head_dim": 16, "mlp_ratio": 2.0, "guidance_embeds": True, "text_embed_dim": 32,
            "pooled_projection_dim": 16, "rope_axes_dim": [4, 6, 6],
        },
        full_text=4096,
        tiny_text=32,
        words=256,
        clip={"num_frames": 129, "height": 544, "width": 960, "num_steps": 4},
        tiny_clip={"num_frames": 9, "height": 32, "width": 32},
        pooled="pooled_projection_dim",
    ),
    "cogvideox": LibrarySubject(
        family="cogvideox_5b",
        describe=lambda depth: _with(cogvideox_library_model(COGVIDEOX_5B_MODEL), cogvideox_sites(depth)),
        full={
            "num_layers": COGVIDEOX_5B_MODEL.num_layers, "num_attention_heads": 48, "attention_head_dim": 64,
            "use_rotary_positional_embeddings": True,
        },
        tiny={
            "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16,
            "text_embed_dim": 32, "sample_width": 4, "sample_height": 4, "sample_frames": 9,
            "use_rotary_positional_embeddings": True,
        },
        full_text=4096,
        tiny_text=32,
        words=226,
        tiny_clip={"num_frames": 9, "height": 32, "width": 32},
        added_scheduler={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    ),
    "ltx": LibrarySubject(
        family="ltx",
        describe=lambda depth: _with(ltx_library_model(LTX_MODEL), ltx_sites(depth)),
        full={"num_layers": LTX_MODEL.num_layers},
        tiny={
            "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32,
            "caption_channels": 32,
        },
        full_text=4096,
        tiny_text=32,
        words=128,
        tiny_clip={"num_frames": 17, "height": 64, "width": 64},
        frames=8,
        pixels=32,
        channels=128,
    ),
}  # fmt: skip
"""By group of rows."""


def make_subject(group: str, size: str, device: torch.device) -> Subject:
    """Builds the model of a group of rows: the same numbers on every rank."""
    library = LIBRARY_SUBJECTS.get(group)
    return replace(MAKERS[group](size, device) if library is None else library.make(size, device), size=size)


def plain_transformer(model: DiffusersVideo, device: torch.device) -> Any:
    """Returns a plain transformer of the library over the weights of a model with sites."""
    ours = cast(Any, model.denoise).experts[0]
    weights = {key.replace(".block.", ".").replace(".module.", "."): x for key, x in ours.state_dict().items()}
    with torch.device("meta"):
        theirs = type(ours).from_config(ours.config)
    theirs.load_state_dict(weights, assign=True)
    if hasattr(ours, "rope"):
        theirs.rope = ours.rope  # what it computes itself, and no state dict holds
    return theirs.to(device).eval()
