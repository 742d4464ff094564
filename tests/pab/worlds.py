"""A tiny STDiT3 with random weights as a loaded model, for tests of the loop."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.plan import make_plan
from pab.broadcast.rules import ATTENTION_KINDS, BroadcastRules, MlpRule, Rules, pyramid
from pab.broadcast.state import COND, UNCOND, Visit
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.family import ClipRequest
from pab.model import DecodedFrames, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import PLAIN_LOOP, Denoised, LoopSettings
from pab.sampling.rectified_flow import timesteps
from tests.hashed_text import hashed_text
from tests.pab.denoised import denoised

CONFIG = STDiT3Config(
    depth=2, hidden_size=32, num_heads=4, caption_channels=16, model_max_length=6, in_channels=4, input_sq_size=64
)
PAB246 = pyramid(
    2, 4, 6, window=(300, 930),
    mlp=[MlpRule(stack=stack, blocks=(0,), skip_count=2, position=0.5) for stack in ("spatial", "temporal")],
)  # fmt: skip


def from_the_start(rules: Rules) -> Rules:
    """The same rules with windows that hold all noise, so that a clip of few steps reuses as they say."""
    assert isinstance(rules, BroadcastRules)
    kinds = {kind: rules.attention(kind) for kind in ATTENTION_KINDS}
    return replace(rules, **{kind: replace(rule, high=1001) for kind, rule in kinds.items() if rule is not None})


@dataclass(frozen=True)
class BlockCodec:
    """Latents of half the frames and an eighth of the size."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return (4, num_frames // 2, height // 8, width // 8)

    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        raise NotImplementedError


def tiny_model() -> STDiT3Video:
    torch.manual_seed(11)
    return STDiT3Video(
        transformer=STDiT3(CONFIG).eval(),
        encode_text=partial(hashed_text, length=CONFIG.model_max_length, channels=CONFIG.caption_channels),
        codec=BlockCodec(),
        timesteps=lambda request: timesteps(request.num_steps),
        model_fps=lambda request: float(request.fps),
    )


def clip(**changes) -> ClipRequest:
    values = {
        "prompt": "a red circle", "negative_prompt": None, "seed": 5, "num_frames": 10, "height": 24, "width": 40,
        "fps": 8, "num_steps": 12, "guidance_scale": 3.0,
    } | changes  # fmt: skip
    return ClipRequest(**values)


def render(
    model: STDiT3Video,
    request: ClipRequest,
    rules: Rules = PAB246,
    group: NodeGroup | None = None,
    depth: int = CONFIG.depth,
    loop: LoopSettings = PLAIN_LOOP,
) -> Denoised:
    plan = make_plan(rules, timesteps(request.num_steps), stdit3_sites(depth))
    return denoised(model, request, plan, group=group, loop=loop)


class OneBranchAtATime:
    """Runs "both" as two passes over one rank, each with its own branch of state."""

    def __init__(self, model: VideoModel, request: ClipRequest) -> None:
        self.model, self.prompt = model, model.encode_prompts([request])[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        passes = [
            self.model.predict(latents, step_input, self.prompt.states(branch), replace(visit, branch=branch), group)
            for branch in (COND, UNCOND)
        ]
        return torch.cat(passes)
