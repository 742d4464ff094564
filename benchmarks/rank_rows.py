"""A row of `many_gpus`: a clip denoised on the ranks of a mesh, beside one card, with its exchanges and its steps."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.bench.library_subjects import LIBRARY_SUBJECTS
from jobs.bench.measure import Measured, measure_ours
from jobs.bench.rows import IN_TURN, RECORDED, Row
from jobs.bench.subjects import Subject
from jobs.quality.alike import latents_alike
from jobs.settings import Mesh
from pab.broadcast.plan import BroadcastPlan
from pab.execution.choice import Execution
from pab.family import ClipRequest
from pab.parallel.mesh import NodeGroup
from pipeline.planning.scaling import expected, tokens_of

Json = dict[str, Any]
_TAKEN_OVER = ("seconds", "spread", "exposed_s", "hidden_s", "sent_gb", "computed_share", "kept_gb", "peak_gb",
               "warm_up_s", "graphs", "graphs_after_warm_up", "memory_asked_after_warm_up", "step_ms",
               "slowest_steps", "late_steps")  # fmt: skip
_OF_RANKS = ("seconds", "exposed_s", "hidden_s", "graphs_after_warm_up", "memory_asked_after_warm_up", "peak_gb")
BOOT = Path("/proc/sys/kernel/random/boot_id")
_QUERIES = ("clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active", "clocks.sm,power.draw,temperature.gpu")
"""The second one for drivers that do not know the first."""


@dataclass(frozen=True, slots=True)
class OneCard:
    """What one card gave, in a folder that later calls read too: seconds and latents of each row without its mesh.

    A folder may come from another machine: latents are compared all the same, seconds are not.
    """

    folder: Path
    model: str

    def place(self, row: Row, request: ClipRequest) -> Path:
        """Returns the file of a row's clip on one card."""
        alone = replace(row, mesh=Mesh(), options=_of_pixels(row))
        size = f"{request.height}x{request.width}x{request.num_frames} {request.num_steps} steps"
        return self.folder / (re.sub(r"[^\w.-]+", "-", f"{self.model} {alone.words} {size}") + ".pt")

    def write(self, row: Row, request: ClipRequest, seconds: float, latents: Tensor) -> None:
        """Keeps what one card gave."""
        place = self.place(row, request)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}")
        torch.save({"seconds": seconds, "latents": latents, "machine": machine()}, beside)
        beside.rename(place)

    def seconds(self, row: Row, request: ClipRequest) -> float | None:
        """Returns the seconds; None if no call with this folder has measured them on this machine."""
        found = self._read(row, request)
        return None if found is None or found["machine"] != machine() else float(found["seconds"])

    def latents(self, row: Row, request: ClipRequest) -> Tensor | None:
        """Returns the latents; None if no call with this folder has rendered them."""
        found = self._read(row, request)
        return None if found is None else cast(Tensor, found["latents"])

    def _read(self, row: Row, request: ClipRequest) -> Json | None:
        place = self.place(row, request)
        return torch.load(place) if place.exists() else None


def _of_pixels(row: Row) -> tuple[str, ...]:
    # Those that change what is computed, and not only how it is queued.
    return tuple(word for word in row.options if word not in (IN_TURN, RECORDED))


def machine() -> str:
    """Names this machine since it was started; empty where the system does not tell."""
    return BOOT.read_text().strip() if BOOT.exists() else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """A row on this rank. `model_size`: full or tiny."""

    subject: Subject
    row: Row
    execution: Execution
    group: NodeGroup
    store: OneCard
    model_size: str

    @property
    def request(self) -> ClipRequest:
        """The clip."""
        return self.row.asked(self.subject.requests[0])

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Height, width and frames."""
        return self.request.height, self.request.width, self.request.num_frames

    def measure(self, *, repeat: int) -> Json:
        """Returns the row's figures, on rank 0 with all that is compared. Collective over all ranks."""
        error, measured = "", None
        try:
            # Ranks must agree how many clips they render, so no clock decides it.
            measured = measure_ours(
                self.subject, self.row, self.execution, self.group, repeat=repeat, enough_s=float("inf")
            )
        except torch.OutOfMemoryError as ended:
            if self.group.clip.size > 1:
                raise  # the others wait for this rank
            error = str(ended)
        failed = torch.tensor([0.0 if measured is not None else 1.0])
        dist.all_reduce(failed)
        head = self._head()
        if measured is None or failed.item():
            return head | {"status": "failed", "why": f"out of memory: {error}"[:300]}
        of_ranks = self._of_ranks(measured.line)
        return head | {"status": "measured"} | self._figures(measured, of_ranks)

    def _head(self) -> Json:
        request = self.request
        return {
            "group": self.row.group.name, "side": self.row.side, "words": self.row.words,
            "clip": {"height": request.height, "width": request.width, "num_frames": request.num_frames,
                     "num_steps": request.num_steps},
            "ranks": self.row.mesh.num_ranks,
        }  # fmt: skip

    def _of_ranks(self, line: Mapping[str, Any]) -> dict[str, list[float]]:
        mine = torch.tensor([float(line[name] or 0.0) for name in _OF_RANKS], dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        columns = torch.stack(every).T.tolist()
        return {name: [round(value, 4) for value in column] for name, column in zip(_OF_RANKS, columns, strict=True)}

    def _figures(self, measured: Measured, of_ranks: dict[str, list[float]]) -> Json:
        row, request, line = self.row, self.request, measured.line
        plan, latents = self.subject.plan(request, row.broadcast), measured.pictures[0].float()
        if row.mesh.num_ranks == 1 and dist.get_rank() == 0:
            self.store.write(row, request, line["seconds"], latents)
        at_once = dist.get_world_size() // row.mesh.num_ranks
        rate = at_once * request.num_frames / max(of_ranks["seconds"])
        found: Json = {name: line[name] for name in _TAKEN_OVER}
        found |= {
            "plan_sent_gb": planned_bytes(self.subject, row, plan, self.model_size) / 1e9,
            "clips_at_once": at_once,
            "frames_per_second": rate,
            "of_ranks": of_ranks,
            "clip_step_ms": [[round(1e3 * each, 2) for each in clip.step_seconds] for clip in measured.clips],
            "patterns": Counter(plan.patterns),
            "cards": cards(self.group.device),
        }
        if len(measured.clips) > 1:
            first, last = (measured.clips[index].pictures.float() for index in (0, -1))
            found["off_again"] = float((last - first).norm() / first.norm())
        if (whole := self._whole_clip(line["step_ms"])) is not None:
            found["whole_clip_s"] = whole
        return found | self._compared(line["seconds"], latents)

    def _whole_clip(self, step_ms: Mapping[str, float]) -> float | None:
        # Seconds of a clip of the family's own steps, by its steps; None for such a clip, or if a pattern was not timed.
        steps = self.subject.family.defaults.num_steps
        patterns = self.subject.plan(replace(self.request, num_steps=steps), self.row.broadcast).patterns
        if (
            self.row.sampling is not None
            or len(patterns) == self.request.num_steps
            or not set(patterns) <= set(step_ms)
        ):
            return None
        return sum(step_ms[pattern] for pattern in patterns) / 1e3

    def _compared(self, seconds: float, latents: Tensor) -> Json:
        found: Json = {"times_one_card": None, "off_one_rank": None, "quality_db": None, "quality_to_plain_db": None}
        if dist.get_rank() > 0:
            return found
        alone_s, alone = self.store.seconds(self.row, self.request), self.store.latents(self.row, self.request)
        if alone_s is not None:
            found["times_one_card"] = alone_s / seconds
        if alone is not None:
            found["off_one_rank"] = float((latents - alone).norm() / alone.norm())
        # Against the same without reuse, and against that without 8-bit floats and the like too.
        mine = replace(self.row, options=_of_pixels(self.row))
        computed = replace(mine, broadcast="none")
        for name, other in (("quality_db", computed), ("quality_to_plain_db", replace(computed, options=()))):
            exact = self.store.latents(other, self.request)
            if exact is not None and other != mine:
                found[name] = latents_alike(exact, latents)[0]
        return found


def planned_bytes(subject: Subject, row: Row, plan: BroadcastPlan, model_size: str) -> float:
    """Returns the bytes that planning expects the busiest rank to send in a clip."""
    memory = subject.family.cost.memory
    if memory is None or row.mesh.sp == 1:
        return 0.0
    library = LIBRARY_SUBJECTS.get(row.group.name)
    if library is None:
        heads, width = None, subject.model.transformer.config.hidden_size  # type: ignore[attr-defined]
    else:
        config = library.config(model_size)
        heads = int(config["num_attention_heads"])
        width = heads * int(config["attention_head_dim"])
    figures = replace(subject.family.cost, precision=subject.precision, memory=replace(memory, width=width))
    tokens = tokens_of(subject.family, row.asked(subject.requests[0]), plan, figures, heads=heads)
    return 0.0 if tokens is None else expected(1.0, plan, tokens, row.mesh).sent_bytes


def cards(device: torch.device) -> list[str]:
    """Returns clock, power, temperature and what holds the clock down of each card, as the driver tells; empty without."""
    if device.type != "cuda" or dist.get_rank() > 0:
        return []
    for query in _QUERIES:
        words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            told = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if told.returncode == 0:
            return told.stdout.splitlines()
    return []


def shown(line: Mapping[str, Any]) -> Json:
    """Returns of a line what a screen has room for."""
    left_out = ("clip_step_ms", "patterns", "group", "side", "clip", "words", "of_ranks", "cards", "status")
    found = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in line.items()
        if name not in left_out and value is not None
    }
    if "step_ms" in found:
        found["step_ms"] = {name: round(value, 1) for name, value in line["step_ms"].items()}
    if "clip_step_ms" in line:
        # One slow step is a hiccup; where all are, the card is slow.
        found["slowest_and_median_step_ms"] = [[max(steps), median(steps)] for steps in line["clip_step_ms"]]
    return found
