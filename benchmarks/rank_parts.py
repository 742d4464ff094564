"""What `many_gpus` measures besides rows: the exchange of a block alone, and decoding a clip of Open-Sora."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.bench.job_model import load_random, load_tiny
from jobs.bench.subjects import MAKERS, TINY, precision_on
from pab.execution.choice import execution_of
from pab.execution.compiled import executing, run_as
from pab.families.open_sora.family import OPEN_SORA
from pab.family import LoadRequest
from pab.parallel.marks import mark_now, seconds_between
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import initial_noise

Json = dict[str, Any]
SIZE = (480, 848, 51)


def exchange_alone(group: NodeGroup, rows: int, *, full: bool, repeat: int) -> Json:
    """Times the exchange of a block with nothing beside it: there and back, and the same with rows of no width."""
    frames, patches, width = (15, 1590, 1152) if full else (5, 24, 32)
    dtype = torch.bfloat16 if group.device.type == "cuda" else torch.float32
    found: Json = {}
    for name, channels in (("there_and_back_ms", width), ("latency_ms", 8)):
        whole = torch.zeros(rows, frames, patches, channels, dtype=dtype, device=group.device)
        mine, places = group.sp.split(whole, 1), group.sp.parts(frames)
        taken: list[float] = []
        for _ in range(3 + 5 * repeat):
            before, start = group.sp.axis.exchanges.snapshot(), mark_now(group.device)
            by_patch = group.sp.all_to_all([mine.transpose(0, 1)], dim=2, places=places)
            group.sp.all_to_all_back(by_patch[:, 0], dim=2, size=patches, places=places, front=1)
            end = mark_now(group.device)
            if group.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(seconds_between(start, end))
            found["sent_mb"] = found.get("sent_mb") or group.sp.axis.exchanges.since(before).all_to_all_bytes / 1e6
        found[name] = 1e3 * median(taken[3:])
    return found


class Decoder:
    """Decodes a clip as jobs do on a GPU: fast, with compiled parts. The model is loaded when it is first asked."""

    def __init__(self, device: torch.device, size: tuple[int, int, int] | None, *, full: bool, backend: str) -> None:
        self.device, self.size, self.full, self.backend = device, size, full, backend
        self.alone: Tensor | None = None

    def _load(self) -> None:
        precision = precision_on(self.device)
        torch._dynamo.reset()
        load = load_random if self.full else load_tiny
        self.model = load(LoadRequest(weights=None, precision=precision, device=str(self.device)))
        self.execution = execution_of(
            OPEN_SORA, compiled=self.device.type == "cuda", attention="auto", device=self.device.type,
            precision=precision, decode="fast",
        )  # fmt: skip
        run_as(self.model, self.execution, backend=self.backend)
        request = MAKERS["open_sora"](TINY, torch.device("cpu")).requests[0]
        if self.full:
            height, width, num_frames = self.size or SIZE
            request = replace(request, num_frames=num_frames, height=height, width=width)
        self.request = request
        self.latents = initial_noise(request, self.model.latent_shape(request)).to(self.device)

    def timed(self, group: NodeGroup, *, repeat: int) -> Json:
        """Returns seconds of decoding on a group's ranks until the frames are on the host, and how far they are off."""
        if not hasattr(self, "model"):
            self._load()
        taken: list[float] = []
        frames: Tensor | None = None
        with executing(self.execution, precision=precision_on(self.device)), torch.inference_mode():
            for _ in range(1 + repeat):
                dist.barrier()
                start = time.perf_counter()
                coming = self.model.decode(self.latents, self.request, group)
                if group.is_clip_root:
                    frames = coming.fetch().cpu()
                elif self.device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - start)
        off = 0.0
        if frames is not None:
            self.alone = frames if self.alone is None else self.alone
            off = float((frames.float() - self.alone.float()).abs().mean())
        return {"seconds": median(taken[1:]), "first_s": taken[0], "ranks": group.clip.size, "off_of_255": off}
