"""The transformer split over 1, 2, 3, 4 and 8 ranks gives one process' numbers: masks, one frame, odd sizes, batch 3."""

from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from pab.families.open_sora.stdit3 import ClipShape
from pab.parallel.mesh import Axis, SequenceParallel
from tests.golden.cases import Case, close
from tests.golden.stdit3 import load_model
from tests.ranks import run_on_ranks

BOUND = 1e-5
SIZES = (1, 2, 3, 4, 8)


@torch.inference_mode()
def predict(case: Case, sp: SequenceParallel) -> torch.Tensor:
    given = case.inputs()
    frames = given["x"].shape[2]
    clip = ClipShape(
        height=float(given["height"][0]), width=float(given["width"][0]), fps=given["fps"], num_latent_frames=frames
    )
    model = load_model(case)
    active = given.get("x_mask")
    out = model.denoise(
        sp.split(given["x"], 2),
        given["timestep"],
        model.prepare_text(given["y"].squeeze(1), given.get("mask")),
        clip=clip,
        active_BT=None if active is None else sp.split(active, 1),
        sp=sp,
    )
    return sp.gather(out, 2, frames)


def predict_all(folder: Path, root: Path) -> dict[tuple[str, int], torch.Tensor]:
    """On one of the ranks: every case's output at every number of ranks that this one belongs to."""
    rank, outputs = dist.get_rank(), {}
    for size in SIZES:
        group = dist.new_group(list(range(size))) if size > 1 else None
        if rank >= size:
            continue
        sp = SequenceParallel(axis=Axis(size=size, rank=rank, group=group))
        for path in sorted(folder.glob("*.json")):
            if path.name != "report.json":
                outputs[path.name, size] = predict(Case(path, root), sp)
    return outputs


@cache
def outputs_of_ranks(folder: Path, root: Path) -> list[dict[tuple[str, int], torch.Tensor]]:
    return run_on_ranks(max(SIZES), predict_all, folder, root)


def check(case: Case) -> None:
    expected = case.tensors
    for size in (2, 4):
        close(expected[f"out.sp{size}"], expected["out"], BOUND, f"the reference's own {size} ranks")
    for rank, outputs in enumerate(outputs_of_ranks(case.path.parent, case.root)):
        for size in SIZES:
            if rank < size:
                close(outputs[case.path.name, size], expected["out"], BOUND, f"rank {rank} of {size}")
