"""The image that a clip begins with, as the image-to-video pipelines of the diffusers library take it.

Shape letters: B clips (one), N tokens of an image encoder, C channels, T latent frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from pab.family import ClipRequest
from pab.model import Scheduler
from pab.parallel.mesh import SequenceParallel
from pab.text.text_encoders import transformers_library
from pab.weights.checkpoint import read_config

if TYPE_CHECKING:
    from pab.conditioning.reference_pixels import ReferenceImage
    from pab.text.states import TextStates


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCondition:
    """What a model is given of an image, on its device.

    `first_BCTHW`: latents of the first frame, which stay as they are. `channels_BCTHW`: what stands beside the noisy latents
    as further channels at every step, all frames of it. `states_BNC`: from an image encoder, for cross attention.
    `mixed_BCTHW`: latents of one frame, of which every frame begins with a little; `noise_share` of each is noise.
    `texts`: the clip's prompt and negative prompt, of a model whose text encoder sees the image; without guidance the latter
    is None.
    """

    first_BCTHW: Tensor | None = None
    channels_BCTHW: Tensor | None = None
    states_BNC: Tensor | None = None
    mixed_BCTHW: Tensor | None = None
    noise_share: float = 1.0
    texts: tuple[TextStates, TextStates | None] | None = None


EncodeImage = Callable[[ClipRequest, "ReferenceImage"], ImageCondition]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImage:
    """What a clip with an image begins from (`pab.model.Beginning`). `sampler` makes the sampler of a clip without.

    `num_frames`: latent frames of the clip. `own_states`: the clip's text by branch, where its encoder sees the image.
    """

    condition: ImageCondition
    num_frames: int
    sampler: Callable[[], Scheduler]
    own_states: Callable[[str], object] | None = None

    @property
    def image_states(self) -> Tensor | None:
        """States of the image encoder."""
        return self.condition.states_BNC

    @property
    def scheduler(self) -> Callable[[SequenceParallel], Scheduler]:
        """Makes the clip's sampler; the latents are whole on every rank."""
        return lambda _sp: ImageSampler(
            sampler=self.sampler(), condition=self.condition, active_BT=self._active_frames()
        )

    def _active_frames(self) -> Tensor | None:
        first = self.condition.first_BCTHW
        return None if first is None else torch.arange(self.num_frames, device=first.device)[None] > 0

    def put_into(self, noise_BCTHW: Tensor) -> Tensor:
        """Returns latents to begin with: the first frame where it is given, noise elsewhere, perhaps with a little of it."""
        mixed = self.condition.mixed_BCTHW
        if mixed is not None:
            # In float32, as the library's pipelines do: the two shares then add up to one as theirs do.
            share = torch.tensor([self.condition.noise_share], device=noise_BCTHW.device)
            noise_BCTHW = noise_BCTHW * share + mixed * (1 - share)
        return _begun(noise_BCTHW, self.condition.first_BCTHW)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSampler:
    """The sampler of a clip that begins with an image, around that of a clip without.

    `active_BT`: False for the first frame, if that is given.
    """

    sampler: Scheduler
    condition: ImageCondition
    active_BT: Tensor | None

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The noise level of every model call."""
        return self.sampler.timesteps

    @property
    def init_noise_sigma(self) -> float:
        """What the initial noise is multiplied by."""
        return self.sampler.init_noise_sigma

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents with the image's channels behind their own."""
        latents, channels = self.sampler.model_input(latents, step), self.condition.channels_BCTHW
        return latents if channels is None else torch.cat([latents, channels], dim=1)

    def active_frames(self, step: int) -> Tensor | None:
        """Returns False for the first frame, if that is given."""
        return self.active_BT

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after a step; a given first frame stays as it is."""
        return _begun(self.sampler.advance(latents, model_input, prediction, step), self.condition.first_BCTHW)


def _begun(latents_BCTHW: Tensor, first_BCTHW: Tensor | None) -> Tensor:
    return latents_BCTHW if first_BCTHW is None else torch.cat([first_BCTHW, latents_BCTHW[:, :, 1:]], dim=2)


def token_timesteps(rows: Tensor, timestep: float, active_BT: Tensor, side: int) -> Tensor:
    """Returns a timestep for every token [rows, S], float32: 0 in given frames.

    `rows` [rows, C, T, H, W]; a token has `side` latents a side.
    """
    frames, height, width = rows.shape[2:]
    levels_BT = active_BT.float() * timestep
    tokens = levels_BT[:, :, None].expand(len(rows), frames, (height // side) * (width // side))
    return tokens.flatten(1)


def image_of(image: ReferenceImage) -> Image.Image:
    """Returns the picture for the library's own preparations."""
    return Image.fromarray(image.frame_HW3.cpu().numpy())


def clip_pixels(image: ReferenceImage, height: int, width: int, device: torch.device) -> Tensor:
    """Returns the image at a clip's size, float32 [1, 3, H, W] in -1..1, as the library's pipelines prepare it.

    They scale it by Lanczos' filter to the clip's height and width, whatever its own proportions.
    """
    from diffusers.video_processor import VideoProcessor

    processor: Any = VideoProcessor(vae_scale_factor=1)
    pixels: Tensor = processor.preprocess(image_of(image), height=height, width=width)
    return pixels.to(device=device, dtype=torch.float32)


def clip_processor(root: Path) -> Callable[[ReferenceImage], Tensor]:
    """Returns what prepares images for a CLIP, by the file in `root/image_processor`: pixels [1, 3, H, W] float32.

    Raises CheckpointError.
    """
    library = transformers_library()
    # Releases that can also scale by torchvision call the one that scales by Pillow so; numbers are the same everywhere.
    kind = getattr(library, "CLIPImageProcessorPil", None) or library.CLIPImageProcessor
    processor: Any = kind.from_dict(read_config(root / "image_processor", "preprocessor_config.json"))

    def prepare(image: ReferenceImage) -> Tensor:
        # Copied to memory of torch's own: the last bits of a product may depend on where its factors lie.
        pixels: Tensor = processor(images=image_of(image), return_tensors="pt").pixel_values.clone()
        return pixels

    return prepare
