"""Small families of the diffusers library on several ranks: what each rank is asked to render, and what it hands back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from pab.broadcast.rules import NO_BROADCAST, BroadcastRules, pyramid
from pab.family import ClipRequest
from pab.library.video import DiffusersVideo
from pab.model import EncodedPrompt
from pab.nn.video import guided_prompt
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised
from pab.text.states import TextStates
from tests.pab.library_worlds import WORLDS

RULES: Mapping[str, BroadcastRules] = {
    "none": NO_BROADCAST,
    "every_other": pyramid(2, None, 2, window=(0, 1000)),  # all attention at every second step
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What of a small family decides how much its ranks send. Each has two heads, and 32 channels in a text state.

    `uneven`: frames, height and width of a clip of 25 tokens, which neither 2 nor 3 nor 4 ranks divide. `token_channels`:
    of the prediction, per token.
    """

    text_tokens: int
    second_text: tuple[int, int] | None = None
    """Tokens of a second encoder's text, and channels of their states."""
    text_is_split: bool = False
    both_rows_at_once: bool
    is_told_guidance: bool = False
    head_dim: int
    token_channels: int = 64
    uneven: tuple[int, int, int] = (17, 80, 16)


_WAN = Tiny(text_tokens=512, both_rows_at_once=False, head_dim=12)
_COGVIDEOX = Tiny(text_tokens=226, text_is_split=True, both_rows_at_once=True, head_dim=16)
_HUNYUAN = Tiny(text_tokens=256, text_is_split=True, both_rows_at_once=False, head_dim=16)
_LTX = Tiny(text_tokens=128, both_rows_at_once=True, head_dim=16, token_channels=128, uneven=(33, 160, 32))
TINY: Mapping[str, Tiny] = {
    "wan": _WAN,
    "wan22_a14b": _WAN,
    "wan_14b_i2v_480p": _WAN,
    "wan22_a14b_i2v": _WAN,
    "wan22_5b": replace(_WAN, token_channels=192, uneven=(17, 160, 32)),
    "cogvideox_2b": _COGVIDEOX,
    "cogvideox_5b": _COGVIDEOX,
    "cogvideox_5b_i2v": replace(_COGVIDEOX, uneven=(9, 32, 32)),
    "hunyuan_video": replace(_HUNYUAN, is_told_guidance=True),
    "hunyuan_video_i2v": replace(_HUNYUAN, text_tokens=396, is_told_guidance=True),
    "hunyuan_video_i2v_33ch": replace(_HUNYUAN, text_tokens=540, uneven=(13, 80, 16)),
    "skyreels_v1": _HUNYUAN,
    "hunyuan_video_15_480p": replace(_HUNYUAN, text_tokens=60, second_text=(20, 16), token_channels=32),
    "ltx": _LTX,
    "ltx_2b": replace(_LTX, text_tokens=256),
    "ltx2": replace(_LTX, text_tokens=16),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One clip of a small family on a mesh dp, cfg, sp. `rules` names one of `RULES`."""

    name: str
    mesh: tuple[int, int, int] = (1, 1, 1)
    rules: str = "every_other"
    num_steps: int = 2
    guidance_scale: float = 5.0
    size: tuple[int, int, int] | None = None

    @property
    def alone(self) -> "Case":
        """The same clip on one rank."""
        return replace(self, mesh=(1, 1, 1))

    @property
    def request(self) -> ClipRequest:
        num_frames, height, width = self.size or TINY[self.name].uneven
        return WORLDS[self.name].clip(
            num_frames=num_frames, height=height, width=width, num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )  # fmt: skip


def render(folder: Path, cases: list[Case]) -> dict[Case, Denoised]:
    """Renders every case on the ranks that there are, or on this process alone."""
    groups: dict[tuple[int, int, int], NodeGroup] = {(1, 1, 1): NodeGroup()}
    for dp, cfg, sp in dict.fromkeys(case.mesh for case in cases if dist.is_initialized()):
        groups[dp, cfg, sp] = open_group(dp=dp, cfg=cfg, sp=sp, device=torch.device("cpu"))
    models = {name: WORLDS[name].load(folder) for name in {case.name for case in cases}}
    return {
        case: WORLDS[case.name].render(
            models[case.name], case.request, RULES[case.rules], groups[case.mesh], prompt(models[case.name], case.name)
        )
        for case in cases
    }


def prompt(model: DiffusersVideo, name: str, words: tuple[int, int] = (40, 9)) -> EncodedPrompt:
    """Text states of a prompt and a negative prompt of these lengths, drawn by chance: no encoder is loaded for them."""
    generator = torch.Generator().manual_seed(0)
    length = TINY[name].text_tokens
    cond, uncond = (
        TextStates(
            y_BLC=torch.randn(1, length, 32, generator=generator),
            mask_BL=(torch.arange(length) < count)[None].long(),
            warnings=((),),
            pooled_BD=torch.randn(1, 16, generator=generator),
            second=second_states(TINY[name].second_text, generator),
        )
        for count in words
    )
    return replace(guided_prompt(cond, uncond, model.prepare_text), guided_passes=model.guided_passes)


def second_states(size: tuple[int, int] | None, generator: torch.Generator) -> TextStates | None:
    """States of as many tokens and channels, of which every other token counts."""
    if size is None:
        return None
    states, mask = torch.randn(1, *size, generator=generator), (torch.arange(size[0]) % 2 == 0)[None].long()
    return TextStates(y_BLC=states, mask_BL=mask, warnings=((),))
