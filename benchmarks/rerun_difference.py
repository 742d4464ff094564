"""The same clip rendered again: equal bytes, or how far apart. In one process, in another one, and on another machine.

Each way of running is rendered twice in one process and once in a second one: eager, compiled, recorded (small loops as
CUDA graphs; on a GPU alone), and by two ranks that share the clip (sp2). Both begin with empty caches of compiled kernels,
and in the second one timings are upside down (a setting that torch has for its own tests): kernels that were chosen by
timing would be other ones there. `--out FILE.npz` keeps the frames, and beside it `FILE.json` the figures;
`--against FILE.npz` compares with what another machine wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Json = dict[str, Any]
WAYS = ("eager", "compiled", "recorded", "sp2")
TIMES = 2
NORMAL, INVERSE = TIMINGS = ("", "inverse")
DISTORT = "TORCHINDUCTOR_DISTORT_BENCHMARKING_RESULT"
"""Torch's variable by which timings are turned upside down when kernels are chosen."""
PROMPT = "a large red circle moves right on a blue background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What a process renders. `broadcast`: one of the family's presets. `backend`: torch.compile's."""

    way: str
    family: str
    weights: str | None
    broadcast: str
    precision: str
    num_steps: int
    size: tuple[int, int, int] | None
    backend: str
    times: int


def difference(first: Frames, second: Frames) -> Json:
    """Returns whether frames are the same, else the largest and the mean difference of 255, and PSNR in dB."""
    from jobs.quality.alike import psnr

    if np.array_equal(first, second):
        return {"equal": True}
    apart = np.abs(first.astype(np.int16) - second)
    return {
        "equal": False, "max": int(apart.max()), "mean": round(float(apart.mean()), 5),
        "psnr_db": round(psnr(first, second), 2), "values": round(float((apart > 0).mean()), 5),
    }  # fmt: skip


def told(found: Mapping[str, Any]) -> str:
    """Returns a difference in words."""
    if found["equal"]:
        return "equal bytes"
    return f"max {found['max']}, mean {found['mean']:.4f} of 255, {found['psnr_db']:.1f} dB, {found['values']:.1%} of values"


def compared(frames: Mapping[str, Sequence[Frames]], other: Mapping[str, Frames]) -> list[Json]:
    """Returns a row per way: against itself in the process, in another one, against eager, and against another machine.

    `frames`: by way two renders of one process and one of a second. `other`: another machine's, by way.
    """
    rows: list[Json] = []
    for way, (one, again, elsewhere) in frames.items():
        row: Json = {
            "way": way, "sha256": hashlib.sha256(one.tobytes()).hexdigest()[:16],
            "again": difference(one, again), "other process": difference(one, elsewhere),
        }  # fmt: skip
        if "eager" in frames and way != "eager":
            row["eager"] = difference(frames["eager"][0], one)
        if way in other:
            row["other machine"] = difference(other[way], one)
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]], against: str | None) -> str:
    """Returns the rows as a table in Markdown."""
    lines = [
        f"| way | again in the process | in another process | against eager | {against or 'another machine'} |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            told(row[name]) if name in row else "-" for name in ("again", "other process", "eager", "other machine")
        ]
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render_ways(options: argparse.Namespace) -> dict[str, list[Frames]]:
    """Renders every way in processes of their own; a way that this machine cannot run is left out, and said."""
    frames: dict[str, list[Frames]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in options.ways.split(","):
            found: list[Frames] = []
            for times, timings in zip((TIMES, 1), TIMINGS, strict=True):
                name = f"{way}-{timings or 'normal'}"
                place = Path(folder) / f"{name}.npy"
                words = [*options.passed_on, "--render", way, "--times", str(times), "--out", str(place)]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.rerun_difference", *words],
                    check=False,
                    env=new_kernels(Path(folder) / f"kernels-{name}", timings),
                )
                if done.returncode:
                    sys.stderr.write(f"{way}: not rendered on this machine (see above)\n")
                    break
                found += list(np.load(place))
            if len(found) == TIMES + 1:
                frames[way] = found
    return frames


def new_kernels(folder: Path, timings: str) -> dict[str, str]:
    """Returns the environment of a process that compiles its kernels anew into a folder, with timings as said."""
    places = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    return {**os.environ, **places, DISTORT: timings}


def render(work: Rendering) -> Frames:
    """Renders a clip several times in this process, or by two ranks that it starts. Returns [times, T, H, W, 3]."""
    if work.way != "sp2":
        return _render(work, 0, 1, "")
    from torch.multiprocessing.spawn import start_processes

    with tempfile.TemporaryDirectory() as folder:
        start_processes(_one_rank, args=(work, folder), nprocs=2, start_method="spawn")
        return np.load(f"{folder}/frames.npy")


def _one_rank(rank: int, work: Rendering, folder: str) -> None:
    frames = _render(work, rank, 2, folder)
    if rank == 0:
        np.save(f"{folder}/frames.npy", frames)


def _render(work: Rendering, rank: int, ranks: int, folder: str) -> Frames:
    import torch

    from pab.execution.choice import execution_of
    from pab.execution.compiled import executing, run_as
    from pab.families import FAMILIES
    from pab.family import LoadRequest
    from pab.sampling.denoise import LoopSettings, denoise, initial_noise, plan_for, records_loop
    from pab.sampling.recorded_loop import LoopRecorder

    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if work.way == "recorded" and device.type == "cpu":
        raise SystemExit("loops are recorded as CUDA graphs, and there is no GPU here")
    group = _group(rank, ranks, folder, device)
    family = FAMILIES[work.family]
    model = family.load(LoadRequest(weights=work.weights, precision=work.precision, device=str(device)))
    execution = execution_of(
        family, compiled=work.way in ("compiled", "recorded"), attention="auto", device=device.type,
        precision=work.precision,
    )  # fmt: skip
    run_as(model, execution, backend=work.backend)
    request = request_of(work)
    plan = plan_for(family, request, family.presets[work.broadcast], work.precision)
    recorder = LoopRecorder() if work.way == "recorded" else None
    if recorder is not None and not records_loop(request, family, plan, group):
        raise SystemExit(f"the loops of {work.family} of this size are not recorded")
    frames: list[Frames] = []
    with executing(execution), torch.inference_mode():
        # A loop is recorded in the second clip of its kind, and replayed from the third on.
        for _ in range(work.times + (2 if recorder else 0)):
            done = denoise(
                model, request, prompt=model.encode_prompts([request])[0],
                noise=initial_noise(request, model.latent_shape(request)), plan=plan, group=group,
                loop=LoopSettings(recorder=recorder),
            )  # fmt: skip
            decoded = model.decode(done.latents, request, group).fetch()
            if rank == 0:  # which has the frames of all ranks
                frames.append(decoded[0].numpy())
    if ranks > 1:
        torch.distributed.destroy_process_group()
    return np.stack(frames[-work.times :]) if rank == 0 else np.empty(0, dtype=np.uint8)


def _group(rank: int, ranks: int, folder: str, device: Any) -> Any:
    import torch
    import torch.distributed as dist

    from pab.parallel.mesh import NodeGroup, open_group

    if device.type == "cpu":
        torch.set_num_threads(1)
    if ranks == 1:
        return NodeGroup(device=device)
    if device.type == "cuda":
        if torch.cuda.device_count() < ranks:
            raise SystemExit(f"sp2 needs {ranks} GPUs, found {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank,
        world_size=ranks, timeout=timedelta(minutes=5), device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    return open_group(dp=1, cfg=1, sp=ranks, device=device)


def request_of(work: Rendering) -> Any:
    """Returns the clip: the family's own size unless one is given."""
    from pab.families import FAMILIES
    from pab.family import ClipRequest

    usual = FAMILIES[work.family].defaults
    num_frames, height, width = work.size or (usual.num_frames, usual.height, usual.width)
    return ClipRequest(
        prompt=PROMPT, negative_prompt=None, seed=1, num_frames=num_frames, height=height, width=width, fps=usual.fps,
        num_steps=work.num_steps or usual.num_steps, guidance_scale=usual.guidance_scale,
    )  # fmt: skip


def machine() -> Json:
    """Returns what renders here."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})", "torch": torch.__version__,
        "gpus": torch.cuda.device_count(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares, or with --render renders one way for the process that compares."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rerun_difference", description=__doc__)
    parser.add_argument("--family", default="demo")
    parser.add_argument("--weights")
    parser.add_argument("--broadcast", default="pab246")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", type=int, default=0, help="the family's own unless given")
    parser.add_argument("--size", help="FRAMESxHEIGHTxWIDTH, the family's own unless given")
    parser.add_argument("--backend", default="inductor", help="of compiled blocks; eager captures graphs alone")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--out", type=Path, default=Path("runs/rerun.npz"))
    parser.add_argument("--against", type=Path, help="frames that another machine wrote")
    parser.add_argument("--render", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=TIMES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.passed_on = arguments
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.render:
        np.save(options.out, render(_work(options)))
        return 0
    frames = render_ways(options)
    other: dict[str, Frames] = {}
    beside: Json = {}
    if options.against:
        other = dict(np.load(options.against))
        beside = json.loads(options.against.with_suffix(".json").read_text())["machine"]
    rows = compared(frames, other)
    np.savez_compressed(options.out, allow_pickle=False, **{way: found[0] for way, found in frames.items()})
    document = {"machine": machine(), "asked": arguments, "against": beside or None, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1))
    sys.stdout.write(table(rows, beside.get("device")))
    return 0 if rows else 1


def _work(options: argparse.Namespace) -> Rendering:
    size = None
    if options.size:
        num_frames, height, width = map(int, options.size.split("x"))
        size = num_frames, height, width
    return Rendering(
        way=options.render, family=options.family, weights=options.weights, broadcast=options.broadcast,
        precision=options.precision, num_steps=options.steps, size=size, backend=options.backend, times=options.times,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
