"""HunyuanVideo and HunyuanVideo 1.5, beside the library's own pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import COND, UNCOND
from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.hunyuan_video.config import (
    HunyuanModel,
)
from pab.families.hunyuan_video.family import hunyuan_video_family
from pab.families.hunyuan_video.tiny import write_small_hunyuan_video
from pab.families.hunyuan_video_15.config import Hunyuan15Model
from pab.families.hunyuan_video_15.family import hunyuan_video_15_family
from pab.families.hunyuan_video_15.tiny import write_small_hunyuan_video_15
from pab.family import ClipRequest
from pab.library.image import image_of
from pab.library.parts import library_class
from tests.pab.library_world import LibraryWorld, displayed, library_module, named, picture, scheduler


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
