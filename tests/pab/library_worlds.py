"""Families of the diffusers library, two layers deep, beside the library's own pipelines over the same weights."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from safetensors.torch import load_file
from torch import Tensor

from pab.broadcast.rules import BroadcastRules
from pab.broadcast.state import COND, UNCOND
from pab.conditioning.reference_noise import reference_generator
from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.cogvideox.config import (
    COGVIDEOX_2B_MODEL,
    COGVIDEOX_5B_I2V_MODEL,
    COGVIDEOX_5B_MODEL,
    CogVideoXModel,
)
from pab.families.cogvideox.family import cogvideox_family
from pab.families.cogvideox.tiny import write_small_cogvideox
from pab.families.hunyuan_video.config import (
    HUNYUAN_VIDEO_I2V_33CH_MODEL,
    HUNYUAN_VIDEO_I2V_MODEL,
    HUNYUAN_VIDEO_MODEL,
    SKYREELS_V1_MODEL,
    HunyuanModel,
)
from pab.families.hunyuan_video.family import hunyuan_video_family
from pab.families.hunyuan_video.tiny import write_small_hunyuan_video
from pab.families.hunyuan_video_15.config import MODEL_480P, Hunyuan15Model
from pab.families.hunyuan_video_15.family import hunyuan_video_15_family
from pab.families.hunyuan_video_15.tiny import write_small_hunyuan_video_15
from pab.families.ltx.config import LTX_2B_MODEL, LTX_MODEL, LtxModel
from pab.families.ltx.family import ltx_family
from pab.families.ltx.levels import DISTILLED_TIMESTEPS
from pab.families.ltx.tiny import write_small_ltx
from pab.families.ltx2.config import LTX2_MODEL, Ltx2Model
from pab.families.ltx2.family import ltx2_family
from pab.families.ltx2.load import streams
from pab.families.ltx2.text import LIBRARY_MODULE
from pab.families.ltx2.tiny import write_small_ltx2
from pab.families.wan.config import (
    WAN22_5B_MODEL,
    WAN22_A14B_I2V_MODEL,
    WAN22_A14B_MODEL,
    WAN_14B_I2V_480P_MODEL,
    WAN_MODEL,
)
from pab.families.wan.family import wan_family
from pab.families.wan.tiny import write_small_wan
from pab.family import ClipRequest, Family, LoadRequest
from pab.library.image import GivenImage, image_of
from pab.library.parts import library_class
from pab.library.video import DiffusersVideo
from pab.model import EncodedPrompt
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, denoise, initial_noise, plan_for, prompt_with
from pab.weights.checkpoint import read_config


def t5_parts(folder: Path) -> dict[str, Any]:
    """Tokenizer and encoder as the library's pipeline has them."""
    import transformers

    name = json.loads((folder / "text_encoder" / "config.json").read_text())["model_type"].upper()
    encoder_class = getattr(transformers, f"{name}EncoderModel")
    encoder = encoder_class(getattr(transformers, f"{name}Config").from_json_file(folder / "text_encoder/config.json"))
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    encoder.load_state_dict(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    return {"tokenizer": tokenizer, "text_encoder": encoder.eval()}


@dataclass(frozen=True, kw_only=True)
class LibraryWorld:
    """One family in small.

    `pack`: from our latents to the library pipeline's, and `unpack` back, given ours for their shape. `texts`: what that
    pipeline takes for the texts, given ours by branch. `encode`: what it makes of a clip's texts, per branch, and
    `text_parts` what it needs for that.
    """

    family: Family
    write: Callable[[Path], None]
    frames: int
    side: int
    pipeline: Callable[[Path, ClipRequest], Any]
    library_frames: Callable[[Any, Tensor, ClipRequest], Tensor]
    pack: Callable[[Tensor], Tensor] = lambda latents: latents
    unpack: Callable[[Tensor, Tensor], Tensor] = lambda latents, _like: latents
    texts: Callable[[Callable[[str], Any]], dict[str, Any]] = lambda text: {
        "prompt_embeds": text(COND), "negative_prompt_embeds": text(UNCOND)
    }  # fmt: skip
    encode: Callable[[Any, ClipRequest, int], Sequence[Any]] = lambda pipeline, request, length: pipeline.encode_prompt(
        request.prompt, max_sequence_length=length
    )
    text_parts: Callable[[Path], dict[str, Any]] = t5_parts
    result: Callable[[Any], Tensor] = lambda outputs: outputs[0]
    guidance: Callable[[ClipRequest], dict[str, Any]] = lambda request: {"guidance_scale": request.guidance_scale}
    options: Callable[[ClipRequest], dict[str, Any]] = lambda _request: {}
    image: bool = False
    """Whether every clip begins with an image."""
    lead_frames: int = 0
    """Frames that the pipeline renders before those of the clip."""
    tolerance: float = 1e-12
    """Of latents of two ranks against one: a pass over one row multiplies matrices of another size."""

    def clip(self, **changes) -> ClipRequest:
        values = {
            "prompt": "a cat walks over a red carpet", "negative_prompt": "waves", "seed": 3, "num_frames": self.frames,
            "height": self.side, "width": self.side, "fps": 8, "num_steps": 3, "guidance_scale": 5.0,
        } | changes  # fmt: skip
        return ClipRequest(**values)

    @property
    def depth(self) -> int:
        return len({site.block for site in self.family.sites})

    def load(self, folder: Path, precision: str = "float32") -> DiffusersVideo:
        request = LoadRequest(weights=str(folder / self.family.name), precision=precision, device="cpu")
        model = self.family.load(request)
        assert isinstance(model, DiffusersVideo)
        return model

    def given(self, model: DiffusersVideo, request: ClipRequest) -> GivenImage | None:
        return model.given_image(request, picture()) if self.image else None

    def prompt(self, model: DiffusersVideo, request: ClipRequest) -> EncodedPrompt:
        """The clip's text, read with its image where the encoder sees that too."""
        return prompt_with(self.given(model, request), model.encode_prompts([request])[0])

    def render(
        self,
        model: DiffusersVideo,
        request: ClipRequest,
        rules: BroadcastRules,
        group: NodeGroup | None = None,
        prompt: EncodedPrompt | None = None,
    ) -> Denoised:
        return denoise(
            model,
            request,
            prompt=prompt or model.encode_prompts([request])[0],
            noise=initial_noise(request, model.latent_shape(request)),
            plan=plan_for(self.family, request, rules, "float32"),
            group=group or NodeGroup(),
            given=self.given(model, request),
        )

    def library_latents(self, folder: Path, model: DiffusersVideo, request: ClipRequest) -> Tensor:
        """Final latents of the library's own pipeline, from the same noise and text states."""
        states = self.prompt(model, request).states
        noise = initial_noise(request, model.latent_shape(request))
        pipeline = self.pipeline(folder / self.family.name, request)
        pipeline.set_progress_bar_config(disable=True)
        image = {"image": image_of(picture()), "generator": reference_generator(request.seed)} if self.image else {}
        # Without guidance there need be no negative prompt, and the pipeline reads none.
        texts = self.texts(states if request.guidance_scale != 1.0 else lambda _branch: states(COND))
        outputs = pipeline(
            **texts, height=request.height, width=request.width,
            num_frames=request.num_frames + self.lead_frames, num_inference_steps=request.num_steps,
            output_type="latent", return_dict=False, latents=self.pack(noise),
            **self.guidance(request) | self.options(request) | image,
        )  # fmt: skip
        return self.unpack(self.result(outputs), noise)


def picture(height: int = 37, width: int = 53) -> ReferenceImage:
    """Smooth colours of an odd size, which is no clip's."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return ReferenceImage(frame_HW3=(torch.stack([y, x, (3 * (x + y)).sin().abs()], dim=-1) * 255).byte())


def library_module(folder: Path) -> Any:
    """A module of the library with a folder's weights, built without our loader.

    They stay where the file puts them, as ours do: on some processors a product's last bits depend on the alignment.
    """
    config = read_config(folder)
    module = library_class(str(config["_class_name"])).from_config(config)
    module.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    return module.eval()


def scheduler(folder: Path, **changes) -> Any:
    config = read_config(folder / "scheduler", "scheduler_config.json")
    return library_class(str(config["_class_name"])).from_config({**config, **changes})


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


def cogvideox_pipeline(folder: Path, request: ClipRequest, name: str = "CogVideoXPipeline") -> Any:
    return library_class(name)(
        tokenizer=None,
        text_encoder=None,
        vae=library_module(folder / "vae"),
        scheduler=scheduler(folder),
        transformer=library_module(folder / "transformer"),
    )


def cogvideox_frames(vae: Any, latents: Tensor, request: ClipRequest) -> Tensor:
    return displayed(vae.decode(latents / vae.config.scaling_factor).sample)


def displayed(pixels: Tensor) -> Tensor:
    """From [B, 3, T, H, W] of -1..1 to [B, T, H, W, 3] of 0..1."""
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)


def cogvideox_world(model: CogVideoXModel) -> LibraryWorld:
    named = {"name": "CogVideoXImageToVideoPipeline"} if model.from_image else {}
    return LibraryWorld(
        family=cogvideox_family(model),
        write=lambda folder: write_small_cogvideox(folder, 0, model),
        frames=9,
        side=32,
        pipeline=partial(cogvideox_pipeline, **named),
        library_frames=cogvideox_frames,
        pack=lambda latents: latents.transpose(1, 2),
        unpack=lambda latents, _like: latents.transpose(1, 2),
        image=model.from_image,
        tolerance=1e-5,
    )


def named(names: Sequence[str], prompt: str, values: Sequence[Tensor]) -> dict[str, Any]:
    """Arguments of a pipeline: each name with the kind of prompt put in."""
    return {name.format(prompt): value for name, value in zip(names, values, strict=True)}


def ltx_pipeline(folder: Path, request: ClipRequest, name: str = "LTXPipeline") -> Any:
    return library_class(name)(
        tokenizer=None,
        text_encoder=None,
        vae=library_module(folder / "vae"),
        scheduler=scheduler(folder),
        transformer=library_module(folder / "transformer"),
    )


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
        pipeline=ltx_pipeline,
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
        pipeline=partial(ltx_pipeline, name="LTXConditionPipeline"),
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


def hunyuan_pipeline(folder: Path, request: ClipRequest, name: str = "HunyuanVideoPipeline", **more) -> Any:
    vae = library_module(folder / "vae")
    vae.enable_tiling()
    return library_class(name)(
        **more,
        tokenizer=None,
        text_encoder=None,
        tokenizer_2=None,
        text_encoder_2=None,
        vae=vae,
        scheduler=scheduler(folder),
        transformer=library_module(folder / "transformer"),
    )


class WholeLatents:
    """The library's pipeline of the first image-to-video release, handing out the frames too that it leaves out."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def __call__(self, **given) -> tuple[Tensor]:
        seen: list[Tensor] = []

        def note(_pipeline, _step, _timestep, values) -> dict[str, Any]:
            seen.append(values["latents"])
            return values

        (shown,) = self._pipeline(**given, callback_on_step_end=note)
        assert torch.equal(shown, seen[-1][:, :, 1:])
        return (seen[-1],)


def hunyuan_image_pipeline(folder: Path, request: ClipRequest) -> Any:
    pipeline = hunyuan_pipeline(folder, request, "HunyuanVideoImageToVideoPipeline", image_processor=None)
    return WholeLatents(pipeline) if pipeline.transformer.config.image_condition_type == "latent_concat" else pipeline


def hunyuan_image_text_parts(folder: Path) -> dict[str, Any]:
    """The same with LLaVA, and what prepares its images."""
    import transformers

    llava = transformers.LlavaForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder / "image_processor")
    return hunyuan_text_parts(folder, llava) | {"image_processor": processor}


def hunyuan_text_parts(folder: Path, encoder: Any = None) -> dict[str, Any]:
    """Tokenizers and encoders as the library's pipeline has them, read by transformers' own loader."""
    import transformers

    return {
        "tokenizer": transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder": encoder or transformers.LlamaModel.from_pretrained(folder / "text_encoder").eval(),
        "tokenizer_2": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "text_encoder_2": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder_2").eval(),
    }


def hunyuan_frames(vae: Any, latents: Tensor, request: ClipRequest) -> Tensor:
    vae.enable_tiling()
    return displayed(vae.decode(latents / vae.config.scaling_factor).sample)[:, -request.num_frames :]


def hunyuan_world(model: HunyuanModel) -> LibraryWorld:
    names = ("{}prompt_embeds", "{}prompt_attention_mask", "{}pooled_prompt_embeds")
    guided, way = model.told_guidance is not None, model.image

    def texts(text) -> dict[str, Any]:
        return named(names, "", text(COND)) | (named(names, "negative_", text(UNCOND)) if guided else {})

    def encode(pipeline, request, length) -> Sequence[Any]:
        black = torch.zeros(request.height, request.width, 3, dtype=torch.uint8)

        def branch(prompt, image):
            given = {"max_sequence_length": length}
            if way is not None:
                given = {"image": image_of(image), "image_embed_interleave": way.every}
            states, pooled, mask = pipeline.encode_prompt(prompt=prompt, **given)
            return states, mask, pooled

        branches = [(request.prompt, picture()), ("", ReferenceImage(frame_HW3=black))]
        return [branch(*each) for each in branches[: 1 + guided]]

    def options(request) -> dict[str, Any]:
        return {"true_cfg_scale": request.guidance_scale, "guidance_scale": model.told_guidance} if guided else {}

    return LibraryWorld(
        family=hunyuan_video_family(model),
        write=lambda folder: write_small_hunyuan_video(folder, 0, model),
        frames=5,
        side=32,
        pipeline=hunyuan_pipeline if way is None else hunyuan_image_pipeline,
        library_frames=hunyuan_frames,
        texts=texts,
        encode=encode,
        text_parts=hunyuan_text_parts if way is None else hunyuan_image_text_parts,
        options=options,
        image=way is not None,
        lead_frames=model.lead_frames,
        tolerance=1e-12 if way is None else 1e-5,  # the text encoder's last bits differ by process
    )


def hunyuan_15_pipeline(folder: Path, request: ClipRequest) -> Any:
    return library_class("HunyuanVideo15Pipeline")(
        text_encoder=None,
        tokenizer=None,
        transformer=library_module(folder / "transformer"),
        vae=library_module(folder / "vae"),
        scheduler=scheduler(folder),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=library_class("ClassifierFreeGuidance")(guidance_scale=request.guidance_scale),
    )


def hunyuan_15_text_parts(folder: Path) -> dict[str, Any]:
    """Tokenizers and encoders as the library's pipeline has them, read by transformers' own loader."""
    import transformers

    return {
        "tokenizer": transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder": transformers.Qwen2_5_VLTextModel.from_pretrained(folder / "text_encoder").eval(),
        "tokenizer_2": transformers.ByT5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        "text_encoder_2": transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_2").eval(),
    }


def hunyuan_15_world(model: Hunyuan15Model) -> LibraryWorld:
    names = ("{}prompt_embeds", "{}prompt_embeds_mask", "{}prompt_embeds_2", "{}prompt_embeds_mask_2")

    def encode(pipeline, request, _length) -> Sequence[Any]:
        pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = model.max_text_tokens, model.max_glyph_tokens
        return [pipeline.encode_prompt(prompt, dtype=torch.float32) for prompt in (request.prompt, "")]

    return LibraryWorld(
        family=hunyuan_video_15_family(model),
        write=lambda folder: write_small_hunyuan_video_15(folder, 0, model),
        frames=5,
        side=32,
        pipeline=hunyuan_15_pipeline,
        library_frames=hunyuan_frames,
        texts=lambda text: named(names, "", text(COND)) | named(names, "negative_", text(UNCOND)),
        encode=encode,
        text_parts=hunyuan_15_text_parts,
        guidance=lambda _request: {},
    )


SMALL_WAN = replace(WAN_MODEL, num_layers=2)
SMALL_WAN22 = replace(WAN22_A14B_MODEL, num_layers=2)
SMALL_WAN22_5B = replace(WAN22_5B_MODEL, num_layers=2)
SMALL_HUNYUAN_15 = replace(MODEL_480P, num_layers=2, max_text_tokens=60, max_glyph_tokens=20)
WORLDS: Mapping[str, LibraryWorld] = {
    "wan": LibraryWorld(
        family=wan_family(SMALL_WAN),
        write=lambda folder: write_small_wan(folder, 0, SMALL_WAN),
        frames=5,
        side=32,
        pipeline=wan_pipeline,
        library_frames=wan_frames,
    ),
    "wan22_a14b": LibraryWorld(
        family=wan_family(SMALL_WAN22),
        write=lambda folder: write_small_wan(folder, 0, SMALL_WAN22),
        frames=5,
        side=32,
        pipeline=wan_pipeline,
        library_frames=wan_frames,
    ),
    "wan22_5b": LibraryWorld(
        family=wan_family(SMALL_WAN22_5B),
        write=lambda folder: write_small_wan(folder, 0, SMALL_WAN22_5B),
        frames=5,
        side=64,
        pipeline=wan_pipeline,
        library_frames=wan_frames,
    ),
    **{
        model.name: LibraryWorld(
            family=wan_family(model),
            write=partial(write_small_wan, seed=0, model=model),
            frames=5,
            side=32,
            pipeline=wan_image_pipeline,
            library_frames=wan_frames,
            image=True,
            tolerance=1e-5 if model.reads_image else 1e-12,  # the image encoder's last bits differ by process
        )
        for model in (replace(WAN_14B_I2V_480P_MODEL, num_layers=2), replace(WAN22_A14B_I2V_MODEL, num_layers=2))
    },
    "cogvideox_2b": cogvideox_world(replace(COGVIDEOX_2B_MODEL, num_layers=2)),
    "cogvideox_5b": cogvideox_world(replace(COGVIDEOX_5B_MODEL, num_layers=2)),
    "cogvideox_5b_i2v": cogvideox_world(
        replace(COGVIDEOX_5B_I2V_MODEL, num_layers=2, num_frames=9, height=32, width=32)
    ),
    "ltx": ltx_world(replace(LTX_MODEL, num_layers=2)),
    "ltx_2b": ltx_world(replace(LTX_2B_MODEL, num_layers=2)),
    "ltx2": ltx2_world(replace(LTX2_MODEL, num_layers=2, max_text_tokens=16)),
    "hunyuan_video": hunyuan_world(replace(HUNYUAN_VIDEO_MODEL, num_layers=2, num_single_layers=2)),
    **{
        model.name: hunyuan_world(replace(model, num_layers=2, num_single_layers=2))
        for model in (HUNYUAN_VIDEO_I2V_MODEL, HUNYUAN_VIDEO_I2V_33CH_MODEL)
    },
    "hunyuan_video_15_480p": hunyuan_15_world(SMALL_HUNYUAN_15),
    "skyreels_v1": hunyuan_world(replace(SKYREELS_V1_MODEL, num_layers=2, num_single_layers=2)),
}


def edited(folder: Path, copy: Path, file: str, **changes) -> None:
    """Links a folder of weights as `copy`, with values of one of its JSON files changed."""
    for source in folder.rglob("*.*"):
        (copy / source.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / source.relative_to(folder)).symlink_to(source)
    values = json.loads((copy / file).read_text()) | changes
    (copy / file).unlink()
    (copy / file).write_text(json.dumps(values))


def parts(text: Any) -> tuple[Tensor, ...]:
    """The tensors that a branch's text consists of, states first."""
    return text if isinstance(text, tuple) else (text,)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
