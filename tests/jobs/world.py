"""A real but tiny STDiT3 family with random weights, and shards of its clips in a bucket."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jobs.render import RenderShard
from jobs.render_settings import RenderSettings
from jobs.setting import settings_in
from jobs.settings import JobSettings, Mesh
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.clip import Clip
from manifests.schema import CLIP_SCHEMA, REFERENCE_SCHEMA, accepted_schema
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import NO_BROADCAST, MlpRule, pyramid
from pab.families.demo.family import DEMO
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.family import NO_FLOOR, ClipRequest, Family, LoadRequest
from pab.model import DecodedFrames
from pab.parallel.mesh import NodeGroup
from pab.sampling.rectified_flow import timesteps
from pab.text.states import TextStates
from tests.hashed_text import hashed_text

CONFIG = STDiT3Config(
    depth=2, hidden_size=32, num_heads=4, caption_channels=16, model_max_length=6, in_channels=4, input_sq_size=64
)
TINY_PAB = pyramid(
    2, 3, 4, window=(100, 950),
    mlp=[MlpRule(stack=stack, blocks=(0,), skip_count=2, position=0.5) for stack in ("spatial", "temporal")],
)  # fmt: skip
STRIDE = 4


@dataclass(frozen=True)
class StretchCodec:
    """Latents at half the frames and a quarter of the size, stretched to frames; some prompts bring trouble."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return (4, -(-num_frames // 2), -(-height // STRIDE), -(-width // STRIDE))

    def encode_frames(self, pixels: Tensor, noise) -> Tensor:
        size = self.latent_shape(*pixels.shape[2:])[1:]
        colours = F.interpolate(pixels * 0.5 / 0.15, size=size, mode="area")
        return F.pad(colours, [0, 0, 0, 0, 0, 0, 0, 1])

    def encode_end(self, latents: Tensor, latent_frames: int, noise) -> Tensor:
        size = (latents.shape[2] * 2, latents.shape[3] * STRIDE, latents.shape[4] * STRIDE)
        pixels = F.interpolate(latents[:, :3].float(), size=size, mode="trilinear") * 0.3
        return self.encode_frames(pixels, noise)[:, :, -latent_frames:]

    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        size = (request.num_frames, request.height, request.width)
        pixels = F.interpolate(latents[:, :3].float().cpu(), size=size, mode="trilinear")
        if request.prompt.startswith("spoil"):
            pixels[:, 0, 1, 2, 3] = float("nan")
        frames = ((pixels * 0.15 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
        return DecodedFrames(frames=frames, not_finite=(~pixels.isfinite()).flatten(1).sum(dim=1))


@dataclass(frozen=True)
class Trouble:
    """Acts on prompts that ask for it, before the model runs.

    `fail`, `kill-rank-1`, `rest SECONDS`; only as long as FILE exists: `kill FILE`, `pause FILE`, `pause-and-fail FILE`, and
    `deaf FILE`, which is a pause without an end, in which no signal reaches Python.
    """

    model: STDiT3Video

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def latent_shape(self, request: ClipRequest) -> tuple[int, ...]:
        words = request.prompt.split()
        if words[0] == "fail":
            raise ArithmeticError("this prompt always fails")
        if words[0] == "kill-rank-1" and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if words[0] == "kill" and Path(words[1]).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if words[0] in ("pause", "pause-and-fail") and Path(words[1]).exists():
            Path(words[1]).with_suffix(".reached").touch()
            while Path(words[1]).exists():
                time.sleep(0.02)
        if words[0] == "pause-and-fail":
            raise ArithmeticError("this prompt fails after its pause")
        if words[0] == "deaf" and Path(words[1]).exists():
            Path(words[1]).with_suffix(".reached").touch()
            lock = ctypes.create_string_buffer(64)  # a mutex taken twice waits for ever, and no signal wakes it
            ctypes.CDLL(None).pthread_mutex_lock(lock)
            ctypes.CDLL(None).pthread_mutex_lock(lock)
        if words[0] == "rest":
            time.sleep(float(words[1]))
        return self.model.latent_shape(request)


def read_text(prompts) -> TextStates:
    for prompt in prompts:
        words = prompt.split()
        if words[0] == "unreadable":
            raise ValueError("these words cannot be read")
        if words[0] == "kill-encoding" and Path(words[1]).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if words[0] == "hang-encoding":
            time.sleep(600)
    states = hashed_text(prompts, length=CONFIG.model_max_length, channels=CONFIG.caption_channels)
    for row, prompt in zip(states.y_BLC, prompts, strict=True):
        if prompt.startswith("nan"):
            row.fill_(float("nan"))
    return replace(states, warnings=tuple(("unknown word: zyx",) if "zyx" in prompt else () for prompt in prompts))


def load_tiny(request: LoadRequest) -> Trouble:
    generator = torch.random.fork_rng()
    with generator:
        torch.manual_seed(11)
        transformer = STDiT3(CONFIG).eval()
    return Trouble(
        STDiT3Video(
            transformer=transformer.to(request.device),
            encode_text=read_text,
            codec=StretchCodec(),
            timesteps=lambda request: timesteps(request.num_steps),
            model_fps=lambda request: float(request.fps),
            references=DEMO.references,
        )
    )


TINY: Family = replace(
    DEMO,
    name="tiny",
    # Its rules are made for the few steps of these clips: none of them is one of few steps.
    defaults=replace(DEMO.defaults, num_steps=4),
    sites=stdit3_sites(CONFIG.depth),
    presets={"none": NO_BROADCAST, "pab": TINY_PAB, "foresight": ForesightRules(gamma=4.0)},
    timesteps=lambda request, _precision: timesteps(request.num_steps),
    num_tokens=lambda num_frames, height, width: -(-num_frames // 2) * -(-height // 8) * -(-width // 8),
    load=load_tiny,
    floor=NO_FLOOR,
)


def find_tiny(name: str) -> Family:
    assert name == "tiny"
    return TINY


def clip(number: int = 0, **changes) -> Clip:
    values = {
        "clip_id": f"clip.{number}", "digest": f"{number:016x}", "prompt": f"a red circle {number}",
        "negative_prompt": None, "seed": 100 + number, "model": "tiny", "num_frames": 8, "height": 32, "width": 48,
        "fps": 8, "num_steps": 8, "guidance_scale": 3.0, "broadcast": "pab",
    } | changes  # fmt: skip
    return Clip(**values)


def write_shard(output: str, clips: list[Clip], shard: int = 7) -> Bucket:
    bucket = Bucket(output)
    rows = [asdict(item) for item in clips]
    named = REFERENCE_SCHEMA if any(item.references for item in clips) else []
    table = pa.Table.from_pylist(rows, schema=accepted_schema(pa.schema([*CLIP_SCHEMA, *named])))
    with bucket.open_output(layout.shard(shard)) as stream:
        pq.write_table(table, stream)
    return bucket


def render_job(output: str, *, mesh: Mesh | None = None, **changes) -> RenderShard:
    progress = {name: changes.pop(name) for name in ("progress",) if name in changes}
    chosen = {"precision": "float32", "device": "cpu", "quality_samples": 1}
    chosen |= {name: changes.pop(name) for name in settings_in(RenderSettings) if name in changes}
    settings = JobSettings(
        output=output, run_id="run-1", mesh=mesh or Mesh(), render=RenderSettings(**chosen), **changes
    )
    return RenderShard(settings=settings, shard=7, find_family=find_tiny, **progress)
