"""One family of the diffusers library in small, beside the library's own pipeline over the same weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pab.broadcast.rules import BroadcastRules
from pab.broadcast.state import COND, UNCOND
from pab.conditioning.reference_noise import reference_generator
from pab.conditioning.reference_pixels import ReferenceImage
from pab.family import ClipRequest, Family, LoadRequest
from pab.library.image import GivenImage, image_of
from pab.library.parts import library_class
from pab.library.video import DiffusersVideo
from pab.model import EncodedPrompt
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, initial_noise, plan_for, prompt_with
from pab.weights.checkpoint import read_config
from tests.pab.denoised import denoised


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
        plan = plan_for(self.family, request, rules, "float32")
        return denoised(model, request, plan, group=group, prompt=prompt, given=self.given(model, request))

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


def plain_pipeline(folder: Path, request: ClipRequest, name: str) -> Any:
    """A pipeline of the library with its transformer, VAE and scheduler; text states are given to it."""
    return library_class(name)(
        tokenizer=None,
        text_encoder=None,
        vae=library_module(folder / "vae"),
        scheduler=scheduler(folder),
        transformer=library_module(folder / "transformer"),
    )


def displayed(pixels: Tensor) -> Tensor:
    """From [B, 3, T, H, W] of -1..1 to [B, T, H, W, 3] of 0..1."""
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)


def named(names: Sequence[str], prompt: str, values: Sequence[Tensor]) -> dict[str, Any]:
    """Arguments of a pipeline: each name with the kind of prompt put in."""
    return {name.format(prompt): value for name, value in zip(names, values, strict=True)}


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
