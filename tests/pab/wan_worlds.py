"""The models of Wan, two layers deep, beside the library's own pipelines."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pab.families.wan.config import (
    WAN22_5B_MODEL,
    WAN22_A14B_I2V_MODEL,
    WAN22_A14B_MODEL,
    WAN_14B_I2V_480P_MODEL,
    WAN_MODEL,
    WanModel,
)
from pab.families.wan.family import wan_family
from pab.families.wan.tiny import write_small_wan
from pab.family import ClipRequest
from pab.library.parts import library_class
from pab.weights.checkpoint import read_config
from tests.pab.library_world import LibraryWorld, displayed, library_module, scheduler


def wan_pipeline(folder: Path, request: ClipRequest) -> Any:
    second, timed = folder / "transformer_2", read_config(folder / "vae")["z_dim"] == 48
    return library_class("WanPipeline")(
        tokenizer=None,
        text_encoder=None,
        vae=library_module(folder / "vae"),
        scheduler=scheduler(folder, flow_shift=12.0 if second.is_dir() else 5.0 if timed else 3.0),
        transformer=library_module(folder / "transformer"),
        transformer_2=library_module(second) if second.is_dir() else None,
        boundary_ratio=0.875 if second.is_dir() else None,
        expand_timesteps=timed,
    )


def image_parts(folder: Path) -> dict[str, Any]:
    """Image encoder and preparations as the library's pipeline has them; weights lie where ours do, and so do pixels."""
    import transformers

    class Aligned(transformers.CLIPImageProcessorPil):
        def __call__(self, *args, **more) -> Any:
            made = super().__call__(*args, **more)
            made["pixel_values"] = made["pixel_values"].clone()
            return made

    encoder = folder / "image_encoder"
    if not encoder.is_dir():
        return {}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig.from_json_file(encoder / "config.json"))
    model.load_state_dict(load_file(encoder / "model.safetensors"), assign=True)
    return {"image_encoder": model.eval(), "image_processor": Aligned.from_pretrained(folder / "image_processor")}


def wan_image_pipeline(folder: Path, request: ClipRequest) -> Any:
    second, timed = folder / "transformer_2", read_config(folder / "vae")["z_dim"] == 48
    return library_class("WanImageToVideoPipeline")(
        tokenizer=None,
        text_encoder=None,
        vae=library_module(folder / "vae"),
        scheduler=scheduler(folder, flow_shift=5.0 if second.is_dir() or timed else 3.0),
        transformer=library_module(folder / "transformer"),
        transformer_2=library_module(second) if second.is_dir() else None,
        boundary_ratio=0.9 if second.is_dir() else None,
        expand_timesteps=timed,
        **image_parts(folder),
    )


def wan_frames(vae: Any, latents: Tensor, request: ClipRequest) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (vae.config.latents_mean, vae.config.latents_std))
    return displayed(vae.decode(latents * std + mean).sample)


def wan_world(model: WanModel, side: int = 32) -> LibraryWorld:
    model = replace(model, num_layers=2)
    return LibraryWorld(
        family=wan_family(model),
        write=partial(write_small_wan, seed=0, model=model),
        frames=5,
        side=side,
        pipeline=wan_image_pipeline if model.from_image else wan_pipeline,
        library_frames=wan_frames,
        image=model.from_image,
        tolerance=1e-5 if model.reads_image else 1e-12,  # the image encoder's last bits differ by process
    )


WAN_WORLDS: Mapping[str, LibraryWorld] = {
    "wan": wan_world(WAN_MODEL),
    "wan22_a14b": wan_world(WAN22_A14B_MODEL),
    "wan22_5b": wan_world(WAN22_5B_MODEL, side=64),
    **{model.name: wan_world(model) for model in (WAN_14B_I2V_480P_MODEL, WAN22_A14B_I2V_MODEL)},
}
