"""How LTX-Video from 0.9.5 on is run: as the library's `LTXConditionPipeline` does, here for clips without conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.library.parts import LibrarySampler
from pab.model import StepInput

FRAME_STRIDE, PIXEL_STRIDE = 8, 32
Text = tuple[Tensor, Tensor]
"""States [rows, L, C] and mask [rows, L]."""


class NegatedSampler(LibrarySampler):
    """The scheduler's update by the noise level of every token, of a prediction that points from noise to the video."""

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after the step."""
        timestep = self.scheduler.timesteps[step]
        levels = timestep.to(latents.device).reshape(1, 1)  # one for all tokens of the row
        return self.scheduler.step(-prediction, timestep, latents, per_token_timesteps=levels, return_dict=False)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionDenoiser:
    """Runs the transformer, which wants tokens in a row, and where each lies: its second, row and column of pixels."""

    experts: tuple[Any, ...]
    dtype: torch.dtype

    def __call__(self, rows: Tensor, step_input: StepInput, text: Text) -> Tensor:
        """Returns the predicted velocity [rows, C, T, H, W] in the transformer's precision."""
        states, mask = text
        output_BSC = self.experts[0](
            hidden_states=rows.to(self.dtype).flatten(2).transpose(1, 2).contiguous(),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=torch.full((len(rows), 1), step_input.timestep, device=rows.device),
            video_coords=token_places(rows, step_input.request.fps),
            return_dict=False,
        )[0]
        return output_BSC.transpose(1, 2).unflatten(2, rows.shape[2:])


def token_places(rows: Tensor, fps: int) -> Tensor:
    """Returns [rows, 3, T*H*W] float32: the second, the row and the column of pixels at which each latent begins.

    The first latent is one frame, each other one is eight.
    """
    frames, height, width = (torch.arange(size, device=rows.device) for size in rows.shape[2:])
    frames = (frames * FRAME_STRIDE + 1 - FRAME_STRIDE).clamp(min=0)
    grid = torch.meshgrid(frames, height * PIXEL_STRIDE, width * PIXEL_STRIDE, indexing="ij")
    places = torch.stack(grid).flatten(1).float()
    places[0] = places[0] * (1.0 / fps)
    return places.expand(len(rows), -1, -1)
