"""Renders a job of Open-Sora 1.2 clips (480p, or --size) with random weights as a real job does; says how busy a device was.

Transformer and VAE have their full size; text states are random too, since prompts are encoded before the first clip. Every
start is a process of its own over one compile cache: the first finds it empty, the others as a node's later jobs do.
Writes the figures and each job's report to --out as it goes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from jobs.bench.job_model import FULL_SIZE, TINY_SIZE, find_random, find_tiny, job_clips
from jobs.render import RenderShard
from jobs.render_settings import RenderSettings
from jobs.settings import JobSettings, Mesh
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.shard_files import shard_file


def render_start(options: argparse.Namespace) -> None:
    """Renders one job in this process and writes its report to --out."""
    size = tuple(options.size or (TINY_SIZE if options.tiny else FULL_SIZE))
    count = options.clips if options.start == 0 else options.clips_later
    output = options.out / f"start-{options.start}"
    bucket = Bucket(str(output))
    bucket.write(layout.shard(0), shard_file(job_clips(count, size, options.num_steps)))
    cuda = torch.cuda.is_available()
    render = RenderSettings(
        precision="bfloat16", device="cuda" if cuda else "cpu", baseline=False, compile=options.compile == "on",
        compile_cache=str(options.out / "cache"), batch=options.batch, decode="fast" if cuda else "published",
    )  # fmt: skip
    settings = JobSettings(
        output=str(output), run_id="benchmark", mesh=Mesh(), render=render, compile_backend=options.backend
    )
    finder = find_tiny if options.tiny else find_random
    RenderShard(settings=settings, shard=0, find_family=finder)()
    shutil.rmtree(output / "videos", ignore_errors=True)


def figures(out: Path, start: int) -> dict[str, object]:
    """Returns what a start's report says."""
    bucket = Bucket(str(out / f"start-{start}"))
    report = bucket.read_json(layout.job_report(0))
    (told,) = report["starts"]
    stages = report["seconds_by_stage"]
    return {
        "start": start,
        "device": told["device"],
        "counts": report["counts"],
        "failed": [clip["reason"] for clip in report["clips"] if clip["outcome"] == "failed"][:3],
        "clips_per_gpu_hour": report["throughput"]["clips_per_gpu_hour"],
        "batches": report["batches"],
        "device_busy": told["device_busy"],
        "compiled": told["compiled"],
        "warm_up_s": told["warm_up_s"],
        "load_s": told["load_s"],
        "wall_s": told["wall_s"],
        "peak_cuda_gb": told["peak_cuda_bytes"] / 1e9,
        "median_s": {name: spread["median"] for name, spread in stages.items()},
        "step_ms": {name: round(1e3 * spread["median"], 1) for name, spread in report["step_seconds"].items()},
    }


def main() -> None:
    """Runs the starts, each in a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=20, help="clips of the first start")
    parser.add_argument("--clips-later", type=int, default=2, help="clips of the later ones, which show the warm-up")
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--num-steps", type=int, default=30)
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--backend", default="inductor", help="torch.compile's backend")
    parser.add_argument(
        "--batch", type=int, default=1, help="clips rendered together; 0 as many as is measured to be faster"
    )
    parser.add_argument(
        "--size", type=int, nargs=3, metavar=("H", "W", "T"), help="height, width, frames (default: 480p, 51)"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model and clip, to try the script on a CPU")
    parser.add_argument("--start", type=int, help="run this start in this process")
    options = parser.parse_args()
    if options.start is not None:
        return render_start(options)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(options.starts):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "benchmarks.job_gpu", *sys.argv[1:], "--start", str(start)], check=True)
        rows.append(figures(options.out, start) | {"process_s": round(time.perf_counter() - began, 2)})
        print(json.dumps(rows[-1]), flush=True)  # noqa: T201
        (options.out / "job_gpu.json").write_text(json.dumps(rows, indent=1))
    shutil.rmtree(options.out / "cache", ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
