"""The transformer on 1, 2, 3, 4 and 8 ranks gives the numbers of one process: masks, one frame, odd sizes, batch 3."""

import re
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from pab.parallel.mesh import Axis, SequenceParallel
from tests.golden.cases import Case, close, find_cases, only, same
from tests.golden.stdit3 import clip_of, load_model
from tests.ranks import run_on_ranks

BOUND = 1e-5
SIZES = (1, 2, 3, 4, 8)
RESULT = frozenset({"maxdiff_to_single", "all_ranks_return_same", "collectives_per_forward"})


@torch.inference_mode()
def predict(case: Case, sp: SequenceParallel) -> torch.Tensor:
    given = case.inputs
    model = load_model(case)
    active = given.get("x_mask")
    out = model.denoise(
        sp.split(given["x"], 2),
        given["timestep"],
        model.prepare_text(given["y"].squeeze(1), given.get("mask")),
        clip=clip_of(case),
        active_BT=None if active is None else sp.split(active, 1),
        sp=sp,
    )
    return sp.gather(out, 2, given["x"].shape[2])


def predict_all(paths: tuple[Path, ...], root: Path) -> dict[tuple[Path, int], torch.Tensor]:
    """Runs on a rank: returns every case's output for every number of ranks that includes this rank."""
    rank, outputs = dist.get_rank(), {}
    for size in SIZES:
        group = dist.new_group(list(range(size))) if size > 1 else None
        if rank >= size:
            continue
        sp = SequenceParallel(axis=Axis(size=size, rank=rank, group=group))
        for path in paths:
            outputs[path, size] = predict(Case(path, root), sp)
    return outputs


@cache
def outputs_of_ranks(paths: tuple[Path, ...], root: Path) -> list[dict[tuple[Path, int], torch.Tensor]]:
    return run_on_ranks(max(SIZES), predict_all, paths, root)


@cache
def cases_for_ranks(root: Path) -> tuple[Path, ...]:
    """Returns the cases of this form that state only known values; all of them run in one start of the ranks."""
    from tests.golden.checks import FORMS

    (form,) = [form for form in FORMS if form.check is check]
    found = []
    for case in find_cases(root):
        if form.fits(case):
            try:
                form.check_stated(case)
            except AssertionError:
                continue
            found.append(case.path)
    return tuple(found)


def check(case: Case) -> None:
    expected, given = case.tensors, case.inputs
    stated = {name: int(name[6:]) for name in expected if re.fullmatch(r"out\.sp\d+", name)}
    results = case.facts["results"]
    same(sorted(f"sp{size}" for size in stated.values()), sorted(results), "numbers of ranks")
    for name in stated:
        only(results[name[4:]], RESULT, name)
        close(expected[name], expected["out"], BOUND, f"the reference's own {name}")
    for rank, outputs in enumerate(outputs_of_ranks(cases_for_ranks(case.root), case.root)):
        for size in SIZES:
            if rank < size:
                close(outputs[case.path, size], expected["out"], BOUND, f"rank {rank} of {size}")
    # the ranks read these values, in other processes
    assert {*given} <= {"x", "timestep", "y", "fps", "height", "width", "mask", "x_mask"}
    for name in given:
        given[name]
    load_model(case)
