"""LTX-Video and LTX-2, beside the library's own pipelines."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from safetensors.torch import load_file
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.families.ltx.config import LtxModel
from pab.families.ltx.family import ltx_family
from pab.families.ltx.levels import DISTILLED_TIMESTEPS
from pab.families.ltx.tiny import write_small_ltx
from pab.families.ltx2.config import Ltx2Model
from pab.families.ltx2.family import ltx2_family
from pab.families.ltx2.load import streams
from pab.families.ltx2.text import LIBRARY_MODULE
from pab.families.ltx2.tiny import write_small_ltx2
from pab.family import ClipRequest
from pab.library.parts import library_class
from pab.weights.checkpoint import read_config
from tests.pab.library_world import LibraryWorld, displayed, library_module, named, plain_pipeline, scheduler


def ltx_frames(vae: Any, latents: Tensor, request: ClipRequest) -> Tensor:
    """As the pipeline decodes at the end of a run: its generator has given the initial noise before."""
    plain = library_class("LTXPipeline")._denormalize_latents(
        latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    generator = torch.Generator().manual_seed(request.seed)
    torch.randn(latents.shape, generator=generator)
    noised = 0.975 * plain + 0.025 * torch.randn(latents.shape, generator=generator)
    torch.manual_seed(request.seed)
    return displayed(vae.decode(noised, torch.tensor([0.05])).sample)


def ltx_world(model: LtxModel) -> LibraryWorld:
    def texts(text) -> dict[str, Any]:
        names = ("{}_embeds", "{}_attention_mask")
        return named(names, "prompt", text(COND)) | named(names, "negative_prompt", text(UNCOND))

    def encode(pipeline, request, length) -> tuple[Any, Any]:
        parts = pipeline.encode_prompt(request.prompt, max_sequence_length=length)
        return parts[:2], parts[2:]

    world = LibraryWorld(
        family=ltx_family(model),
        write=lambda folder: write_small_ltx(folder, 0, model),
        frames=9,
        side=64,
        pipeline=partial(plain_pipeline, name="LTXPipeline"),
        library_frames=ltx_frames,
        pack=lambda latents: latents.flatten(2).transpose(1, 2).contiguous(),
        unpack=lambda latents, like: latents.transpose(1, 2).reshape(like.shape),
        texts=texts,
        encode=encode,
        options=lambda request: {"frame_rate": request.fps},
        tolerance=1e-5,
    )
    if not model.takes_conditions:
        return world

    def options(request) -> dict[str, Any]:
        # It draws the initial noise itself. Levels as a list: with its own tensor NumPy warns.
        levels = DISTILLED_TIMESTEPS if model.is_distilled else linear_quadratic_schedule(request.num_steps) * 1000
        generator = torch.Generator().manual_seed(request.seed)
        return {"frame_rate": request.fps, "generator": generator, "timesteps": [float(level) for level in levels]}

    return replace(
        world,
        pipeline=partial(plain_pipeline, name="LTXConditionPipeline"),
        pack=lambda latents: latents,
        unpack=lambda latents, _like: latents,
        options=options,
    )


def ltx2_part(folder: Path) -> Any:
    """A part of LTX-2 that the library does not offer at its top."""
    config = read_config(folder)
    module = library_class(str(config["_class_name"]), LIBRARY_MODULE).from_config(config)
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module.eval()


def ltx2_pipeline(folder: Path, request: ClipRequest) -> Any:
    """Connectors hand through what they are given, and latents come out as they are in the loop."""
    pipeline = library_class("LTX2Pipeline")(
        tokenizer=None,
        text_encoder=None,
        connectors=None,
        vae=library_module(folder / "vae"),
        audio_vae=library_module(folder / "audio_vae"),
        vocoder=ltx2_part(folder / "vocoder"),
        scheduler=scheduler(folder),
        transformer=library_module(folder / "transformer"),
    )
    pipeline.connectors = lambda states, mask, **_: (*states.chunk(2, dim=2), mask)
    for vae in (pipeline.vae, pipeline.audio_vae):
        vae.latents_mean, vae.latents_std = torch.zeros_like(vae.latents_mean), torch.ones_like(vae.latents_std)
    return pipeline


def ltx2_text_parts(folder: Path) -> dict[str, Any]:
    """Tokenizer, encoder and connectors as the library's pipeline has them."""
    import transformers

    config = transformers.Gemma3Config.from_json_file(folder / "text_encoder" / "config.json")
    encoder = transformers.Gemma3ForConditionalGeneration(config)
    encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"), strict=False)
    return {
        "tokenizer": transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder": encoder.eval(),
        "connectors": ltx2_part(folder / "connectors"),
    }


def ltx2_world(model: Ltx2Model) -> LibraryWorld:
    def texts(text) -> dict[str, Any]:
        names = ("{}_embeds", "{}_attention_mask")
        packed = {branch: (torch.cat(text(branch)[:2], dim=2), text(branch)[2]) for branch in (COND, UNCOND)}
        return named(names, "prompt", packed[COND]) | named(names, "negative_prompt", packed[UNCOND])

    def encode(pipeline, request, length) -> tuple[Any, Any]:
        states, mask, negative, negative_mask = pipeline.encode_prompt(request.prompt, max_sequence_length=length)
        return pipeline.connectors(states, mask), pipeline.connectors(negative, negative_mask)

    def frames(vae: Any, latents: Tensor, request: ClipRequest) -> Tensor:
        video, _ = streams(latents, request)
        mean, std = (values.view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
        return displayed(vae.decode(video * std + mean).sample)

    return LibraryWorld(
        family=ltx2_family(model),
        write=lambda folder: write_small_ltx2(folder, 0, model),
        frames=9,
        side=64,
        pipeline=ltx2_pipeline,
        library_frames=frames,
        pack=lambda _latents: None,
        result=lambda outputs: torch.cat([each.flatten(1) for each in outputs], dim=1),
        unpack=lambda latents, like: latents.reshape(like.shape),
        texts=texts,
        encode=encode,
        text_parts=ltx2_text_parts,
        options=lambda request: LTX2_GUIDANCE | {
            "frame_rate": float(request.fps),
            "generator": torch.Generator().manual_seed(request.seed),
            "audio_guidance_scale": request.guidance_scale,
        },
        tolerance=1e-5,
    )  # fmt: skip


LTX2_GUIDANCE = {
    "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0, "use_cross_timestep": False, "spatio_temporal_guidance_blocks": None,
}  # fmt: skip
"""Guidance by the text alone, and the rules of 2.0."""
