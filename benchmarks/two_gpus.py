"""Measures on two GPUs, in one call of a few minutes, what sharing a clip of Open-Sora 1.2 gives, and what exchanges cost.

Rows are none, PAB246 and PAB246 in 8-bit floats: on one GPU, guidance apart (cfg2), a pass shared (sp2), and that with its
rows in turn; then the link alone, with the bytes of such an exchange, and decoding on one and two GPUs. Latents of two GPUs
are compared with those of one. DIR/two_gpus.json is written after every row; --seconds ends it in time. On a machine without
GPUs tiny models run on two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from jobs.bench.job_model import load_random, load_tiny
from jobs.bench.library_subjects import make_subject
from jobs.bench.measure import measure_ours
from jobs.bench.ranks import meet
from jobs.bench.rows import GROUPS, IN_TURN, Row, parse_row
from jobs.bench.subjects import FULL, TINY, Subject
from pab.execution.choice import execution_of
from pab.execution.compiled import executing, run_as
from pab.families.open_sora.family import OPEN_SORA
from pab.family import LoadRequest
from pab.parallel.marks import mark_now, seconds_between
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import initial_noise

Json = dict[str, Any]
MESHES = ("", "cfg2", "sp2", f"sp2 {IN_TURN}")
PLANS = ("none", "pab246", "pab246 float8")
"""Full weights do not come back, so 8-bit floats come last."""
RANKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What both ranks get. `file`: where rank 0 writes; `plans`, `meshes`: which rows; `ends`: by the clock of the host."""

    meet: str
    file: str
    device: str
    size: str
    backend: str
    mode: str
    repeat: int
    plans: tuple[str, ...]
    meshes: tuple[str, ...]
    parts: tuple[str, ...]
    ends: float


class Lines:
    """The lines of this call: rank 0 writes the file anew after each."""

    def __init__(self, work: Work, rank: int) -> None:
        self.work, self.rank = work, rank
        name = torch.cuda.get_device_name() if work.device == "cuda" else "cpu"
        self.document: Json = {"device": name, "torch": torch.__version__, "size": work.size, "lines": []}

    def add(self, name: str, measure: Callable[[], Json]) -> None:
        """Measures a line on both ranks, if time is left, or notes that none was: rank 0 says which, for both."""
        left = torch.tensor([self.work.ends - time.time()])
        dist.broadcast(left, src=0)
        began = time.perf_counter()
        line = measure() if left.item() > 0 else {"skipped": "no time left (--seconds)"}
        if self.rank == 0:
            self.document["lines"].append({"name": name, **line, "took_s": round(time.perf_counter() - began, 2)})
            Path(self.work.file).write_text(json.dumps(self.document, indent=1) + "\n")
            print(json.dumps(self.document["lines"][-1]), flush=True)  # noqa: T201


def run_rank(rank: int, work: Work) -> None:
    """Measures everything on one of the ranks, which meets the other one."""
    measure_all(rank, work, meet(rank, RANKS, work.device, work.meet))
    dist.destroy_process_group()


def measure_all(rank: int, work: Work, device: torch.device) -> None:
    """Measures everything on one of the ranks of the default group."""
    # A rank alone is a replica: both render the same clip, and the first one's figures count.
    groups = {
        "": NodeGroup(device=device),
        "cfg2": open_group(dp=1, cfg=2, sp=1, device=device),
        "sp2": open_group(dp=1, cfg=1, sp=2, device=device),
    }
    lines = Lines(work, rank)
    if "exchange" in work.parts:
        for rows in (2, 1):
            lines.add(f"exchange of {rows} rows", partial(exchange_alone, groups["sp2"], work, rows))
    if "rows" in work.parts:
        render_rows(work, lines, groups, device)
    if "decode" in work.parts:
        latents_and_decode(work, lines, groups, device)


def render_rows(work: Work, lines: Lines, groups: dict[str, NodeGroup], device: torch.device) -> None:
    """Adds a line for every plan on every mesh."""
    group = next(each for each in GROUPS if each.name == "open_sora")
    subject: Subject | None = None
    before = None
    reference: dict[str, Tensor] = {}
    for plan in work.plans:
        for mesh in work.meshes:
            row = parse_row(group, f"{work.mode} {plan} {mesh}")
            execution = replace(
                row.execution(device.type, "bfloat16" if device.type == "cuda" else "float32"), records=False
            )
            if subject is None or execution != before:
                torch._dynamo.reset()
                subject = make_subject("open_sora", work.size, device)
                run_as(subject.model, execution, backend=work.backend)
                before = execution
            shared = groups["sp2" if "sp2" in mesh else mesh]
            lines.add(row.words, partial(measure_row, subject, row, shared, work, reference.setdefault, plan))


def measure_row(
    subject: Subject, row: Row, group: NodeGroup, work: Work, known: Callable[[str, Tensor], Tensor], plan: str
) -> Json:
    """Returns a row's figures, and how far its latents are from those of one rank under the same plan."""
    execution = replace(row.execution(subject.device.type, subject.precision), records=False)
    measured = measure_ours(subject, row, execution, group, repeat=work.repeat, enough_s=float("inf"))
    latents = measured.pictures[0].float()
    first = known(plan, latents)
    names = ("seconds", "spread", "exposed_s", "hidden_s", "sent_gb", "step_ms", "peak_gb", "warm_up_s",
             "graphs_after_warm_up", "clip_seconds", "slowest_steps", "late_steps")  # fmt: skip
    return {name: measured.line[name] for name in names} | {
        "off_one_rank": float((latents - first).norm() / first.norm())
    }


def exchange_alone(group: NodeGroup, work: Work, rows: int) -> Json:
    """Times the exchange of a block with nothing beside it: there and back, and the same with rows of no width."""
    frames, patches, width = (15, 1590, 1152) if work.size == FULL else (5, 24, 32)
    dtype = torch.bfloat16 if group.device.type == "cuda" else torch.float32
    found: Json = {}
    for name, channels in (("there_and_back_ms", width), ("latency_ms", 8)):
        whole = torch.zeros(rows, frames, patches, channels, dtype=dtype, device=group.device)
        mine, places = group.sp.split(whole, 1), group.sp.parts(frames)
        taken: list[float] = []
        for _ in range(3 + 5 * work.repeat):
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


def latents_and_decode(work: Work, lines: Lines, groups: dict[str, NodeGroup], device: torch.device) -> None:
    """Adds lines of decoding a clip on one rank and shared over two, as jobs do on a GPU: fast, compiled parts."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    load = load_random if work.size == FULL else load_tiny
    torch._dynamo.reset()
    model = load(LoadRequest(weights=None, precision=precision, device=str(device)))
    execution = execution_of(
        OPEN_SORA, compiled=work.mode == "compiled", attention="auto", device=device.type, precision=precision,
        decode="fast",
    )  # fmt: skip
    run_as(model, execution, backend=work.backend)
    request = make_subject("open_sora", TINY, torch.device("cpu")).requests[0]
    if work.size == FULL:
        request = replace(request, num_frames=51, height=480, width=848)
    latents = initial_noise(request, model.latent_shape(request)).to(device)
    frames: dict[str, Tensor] = {}

    def timed(group: NodeGroup, name: str) -> Json:
        taken: list[float] = []
        with executing(execution, precision=precision), torch.inference_mode():
            for _ in range(1 + work.repeat):
                dist.barrier()
                start = time.perf_counter()
                coming = model.decode(latents, request, group)
                if group.is_clip_root:
                    frames[name] = coming.fetch().cpu()
                elif device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - start)
        off = 0.0
        if name in frames and "one" in frames:
            off = float((frames[name].float() - frames["one"].float()).abs().mean())
        return {"seconds": median(taken[1:]), "first_s": taken[0], "off_of_255": off}

    lines.add("decode, one rank", lambda: timed(groups[""], "one"))
    lines.add("decode, two ranks", lambda: timed(groups["sp2"], "two"))


def main(arguments: list[str] | None = None) -> None:
    """Starts both ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--repeat", type=int, default=3, help="clips of a row; medians are told")
    parser.add_argument("--seconds", type=float, default=500, help="begin no further row after this long")
    parser.add_argument("--plans", default=",".join(PLANS), help=f"of: {', '.join(PLANS)} and other words of bench")
    parser.add_argument("--meshes", default=",".join(MESHES), help="of one rank (empty), cfg2, sp2 and sp2 inturn")
    parser.add_argument("--parts", default="exchange,rows,decode")
    parser.add_argument(
        "--high-priority", action="store_true", help="NCCL's kernels go before others: what rows in turn may need"
    )
    parser.add_argument("--mode", default="compiled", choices=("compiled", "eager"))
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < RANKS:
        parser.error(f"needs {RANKS} GPUs, found {torch.cuda.device_count()}")
    if options.high_priority:
        os.environ["TORCH_NCCL_HIGH_PRIORITY"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            meet=f"{folder}/meet", file=str(options.out / "two_gpus.json"), device="cuda" if cuda else "cpu",
            size=FULL if cuda else TINY, backend="inductor" if cuda else "eager", mode=options.mode,
            repeat=options.repeat, plans=tuple(options.plans.split(",")), meshes=tuple(options.meshes.split(",")),
            parts=tuple(options.parts.split(",")), ends=time.time() + options.seconds,
        )  # fmt: skip
        start_processes(run_rank, args=(work,), nprocs=RANKS, start_method="spawn")


if __name__ == "__main__":
    main()
