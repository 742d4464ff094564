"""Writes a full-size Wan 2.1 1.3B with random weights, and renders clips of it through `python -m pipeline submit`.

Transformer and VAE have their published sizes; the text encoder is small, with text states as wide as the published one's.
Says what the job's report says: seconds by stage, milliseconds of a step, how busy the device was.
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

from jobs.bench.library_subjects import LIBRARY_SUBJECTS, random_part
from jobs.store import layout
from jobs.store.bucket import Bucket
from pab.families.wan.config import MAX_TEXT_TOKENS, WAN_MODEL
from pab.families.wan.load import wan_library_model
from pab.families.wan.tiny import SCHEDULER
from pab.weights.tiny_parts import write_component, write_scheduler, write_t5_and_tokenizer


def write_weights(folder: Path, size: str, device: torch.device) -> None:
    """Writes the model's folder as the diffusers library lays it out; bfloat16 where it is loaded so."""
    wan = LIBRARY_SUBJECTS["wan"]
    described = wan_library_model(WAN_MODEL)
    config = {**wan.config(size), "num_layers": WAN_MODEL.num_layers, "_class_name": "WanTransformer3DModel"}
    transformer = random_part("WanTransformer3DModel", config, torch.bfloat16, device, described.compute_buffers)
    write_component(folder / "transformer", transformer.cpu(), config)
    vae = {"_class_name": "AutoencoderKLWan"} | ({} if size == "full" else {"base_dim": 8})
    write_component(folder / "vae", random_part("AutoencoderKLWan", vae, torch.float32, device).cpu(), vae)
    width = wan.full_text if size == "full" else wan.tiny_text
    write_t5_and_tokenizer(folder, channels=width, max_length=MAX_TEXT_TOKENS, architecture="UMT5")
    write_scheduler(folder, SCHEDULER)


def write_manifest(path: Path, count: int, size: tuple[int, int, int], num_steps: int) -> None:
    """Writes prompts of 40 to 140 words, each with a seed of its own."""
    frames, height, width = size
    rows = [
        {
            "clip_id": f"clip-{number}",
            "prompt": "a cat walks over a red carpet " * (6 + 5 * number % 17),
            "seed": number,
            "num_frames": frames,
            "height": height,
            "width": width,
            "num_steps": num_steps,
        }
        for number in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def main() -> int:
    """Writes weights and manifest, submits, and prints the report's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=50)
    parser.add_argument("--size", choices=("full", "tiny"), default="full" if torch.cuda.is_available() else "tiny")
    parser.add_argument("submit", nargs="*", help="more words for `submit`, after --")
    options = parser.parse_args()
    full = options.size == "full"
    options.out.mkdir(parents=True, exist_ok=True)
    weights, manifest, output = (options.out / name for name in ("weights", "manifest.parquet", "run"))
    if not weights.exists():
        write_weights(weights, options.size, torch.device("cuda" if full else "cpu"))
    write_manifest(manifest, options.clips, (81, 480, 832) if full else (5, 32, 32), options.num_steps)
    began = time.perf_counter()
    # Decoded random weights are noise, which needs a lossless video to come through the check of what was encoded.
    words = ["--model", "wan", "--weights", str(weights), "--output", str(output), "--cluster", "local", "--crf", "0"]
    code = subprocess.run(
        [sys.executable, "-m", "pipeline", "submit", str(manifest), *words, *options.submit], check=False
    ).returncode
    wall_s = time.perf_counter() - began
    report = Bucket(str(output)).read_json(layout.job_report(0))
    (told,) = report["starts"]
    found = {
        "exit": code,
        "wall_s": round(wall_s, 1),
        "device": told["device"],
        "counts": report["counts"],
        "failed": [clip["reason"] for clip in report["clips"] if clip["outcome"] == "failed"][:3],
        "device_busy": told["device_busy"],
        "load_s": told["load_s"],
        "warm_up_s": told["warm_up_s"],
        "peak_cuda_gb": told["peak_cuda_bytes"] / 1e9,
        "median_s": {name: spread["median"] for name, spread in report["seconds_by_stage"].items()},
        "step_ms": {name: round(1e3 * spread["median"], 1) for name, spread in report["step_seconds"].items()},
        "speedup": report.get("speedup"),
    }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    (options.out / "wan_job.json").write_text(json.dumps(found, indent=1))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
