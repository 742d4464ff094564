"""Renders clips of a full-size Open-Sora or Wan with random weights through `python -m pipeline submit`.

The weights are those of `benchmarks.random_weights`. Says what the job's report says: which mesh, frames a second from the
first prompt to the last record, seconds by stage, milliseconds of a step, how busy the device was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.random_weights import NAMES, OPEN_SORA, PRECISION, SIZES, WAN_MODELS, wan_config, write_weights
from jobs.bench.job_model import FULL_SIZE
from jobs.store import layout
from jobs.store.bucket import Bucket

LORA_RANK = 16
CLIPS = {
    (OPEN_SORA, "full"): FULL_SIZE, (OPEN_SORA, "tiny"): (112, 128, 17),
    ("wan", "full"): (480, 832, 81), ("wan", "tiny"): (32, 32, 5),
}  # fmt: skip
"""Height, width and frames of a clip, of any Wan as of `wan`."""


def write_lora(path: Path, name: str, size: str) -> None:
    """Writes a LoRA of all attention products with random matrices, with the library's own names."""
    config = wan_config(name, size)
    width = int(str(config["num_attention_heads"])) * int(str(config["attention_head_dim"]))
    found = {}
    for block in range(WAN_MODELS[name][0].num_layers):
        for attention in ("attn1", "attn2"):
            for product in ("to_q", "to_k", "to_v", "to_out.0"):
                place = f"transformer.blocks.{block}.{attention}.{product}"
                found[f"{place}.lora_A.weight"] = torch.randn(LORA_RANK, width) * width**-0.5
                found[f"{place}.lora_B.weight"] = torch.randn(width, LORA_RANK) * 0.01
    save_file({key: value.to(PRECISION) for key, value in found.items()}, path)


def write_manifest(
    path: Path, count: int, size: tuple[int, int, int], num_steps: int | None, image: Path | None
) -> None:
    """Writes prompts of 40 to 140 words, each with a seed of its own."""
    height, width, frames = size
    given = ({} if num_steps is None else {"num_steps": num_steps}) | ({} if image is None else {"image": str(image)})
    rows = [
        {
            "clip_id": f"clip-{number}",
            "prompt": "a cat walks over a red carpet " * (6 + 5 * number % 17),
            "seed": number,
            "num_frames": frames,
            "height": height,
            "width": width,
            **given,
        }
        for number in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def figures(output: Path) -> dict[str, object]:
    """Returns what the report of the run's first job says."""
    report = Bucket(str(output)).read_json(layout.job_report(0))
    (told,) = report["starts"]
    return {
        "device": told["device"],
        "mesh": report["mesh"],
        "headline": report["headline"],
        "exchanges": report["exchanges"],
        "counts": report["counts"],
        "failed": [clip["reason"] for clip in report["clips"] if clip["outcome"] == "failed"][:3],
        "device_busy": told["device_busy"],
        "load_s": told["load_s"],
        "warm_up_s": told["warm_up_s"],
        "peak_cuda_gb": told["peak_cuda_bytes"] / 1e9,
        "median_s": {stage: spread["median"] for stage, spread in report["seconds_by_stage"].items()},
        "step_ms": {pattern: round(1e3 * spread["median"], 1) for pattern, spread in report["step_seconds"].items()},
        "speedup": report.get("speedup"),
    }


def main(arguments: list[str] | None = None) -> int:
    """Writes weights and manifest, submits, and prints the report's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=NAMES, default="wan")
    parser.add_argument(
        "--weights", type=Path, help="a folder of benchmarks.random_weights (default: OUT/MODEL, written)"
    )
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--clip", type=int, nargs=3, metavar=("H", "W", "T"), help="height, width, frames")
    parser.add_argument("--num-steps", type=int, help="default: the family's, or those of --sampling")
    parser.add_argument("--lora", action="store_true", help=f"Wan with a LoRA of rank {LORA_RANK} and random matrices")
    parser.add_argument("--size", choices=SIZES, default="full" if torch.cuda.is_available() else "tiny")
    parser.add_argument("submit", nargs="*", help="more words for `submit`, after --")
    options = parser.parse_args(arguments)
    full, wan = options.size == "full", options.model != OPEN_SORA
    if options.lora and not wan:
        parser.error(f"--lora is for {', '.join(WAN_MODELS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    manifest, output = options.out / "manifest.parquet", options.out / "run"
    weights = options.weights or options.out / options.model
    if not weights.exists():
        write_weights(weights, options.model, options.size, torch.device("cuda" if full else "cpu"))
    size = tuple(options.clip or CLIPS["wan" if wan else OPEN_SORA, options.size])
    image = options.out / "image.png" if wan and WAN_MODELS[options.model][0].from_image else None
    if image is not None:
        Image.effect_mandelbrot((size[1], size[0]), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(image)
    write_manifest(manifest, options.clips, size, options.num_steps, image)
    # Decoded random weights are noise, which needs a lossless video to come through the check of what was encoded.
    words = ["--model", options.model, "--weights", str(weights), "--output", str(output), "--crf", "0"]
    if options.lora:
        write_lora(options.out / "lora.safetensors", options.model, options.size)
        words += ["--lora", str(options.out / "lora.safetensors")]
    began = time.perf_counter()
    code = subprocess.run(
        [sys.executable, "-m", "pipeline", "submit", str(manifest), "--cluster", "local", *words, *options.submit],
        check=False,
    ).returncode
    if not Bucket(str(output)).exists(layout.job_report(0)):
        return code or 1  # it was refused, or its job lost: `submit` has said why
    found = {"exit": code, "wall_s": round(time.perf_counter() - began, 1), **figures(output)}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    (options.out / "submit_job.json").write_text(json.dumps(found, indent=1))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
