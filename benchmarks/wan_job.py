"""Writes a full-size Wan 2.1 with random weights, and renders clips of it through `python -m pipeline submit`.

Transformer and VAE have their published sizes. The encoders of text and image are small; their states are as wide as the
transformer reads them. Says what the job's report says: seconds by stage, milliseconds of a step, how busy the device was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs.bench.library_subjects import LIBRARY_SUBJECTS, random_part
from jobs.store import layout
from jobs.store.bucket import Bucket
from pab.families.wan.config import MAX_TEXT_TOKENS, WAN_14B_I2V_480P_MODEL, WAN_14B_MODEL, WAN_MODEL, WanModel
from pab.families.wan.load import wan_library_model
from pab.families.wan.tiny import IMAGE_CHANNELS, SCHEDULER, write_image_encoder
from pab.weights.tiny_parts import write_component, write_scheduler, write_t5_and_tokenizer

MODELS: Mapping[str, tuple[WanModel, str]] = {
    "wan": (WAN_MODEL, "wan"),
    "wan_14b": (WAN_14B_MODEL, "wan_14b"),
    "wan_14b_i2v_480p": (WAN_14B_I2V_480P_MODEL, "wan_14b"),
}
"""By family: the model, and the group of the benchmark's rows whose widths it has."""
LORA_RANK = 16
PRECISION = torch.bfloat16


def transformer_config(name: str, size: str) -> dict[str, object]:
    """Returns the configuration of a model's transformer: the published widths, or narrow ones, and the published depth."""
    model, subject = MODELS[name]
    config = {
        **LIBRARY_SUBJECTS[subject].config(size),
        "num_layers": model.num_layers,
        "in_channels": model.in_channels,
        "_class_name": "WanTransformer3DModel",
    }
    if model.reads_image:
        width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
        config |= {"image_dim": IMAGE_CHANNELS, "added_kv_proj_dim": width}
    return config


def write_weights(folder: Path, name: str, size: str, device: torch.device) -> None:
    """Writes the model's folder as the diffusers library lays it out; bfloat16 where it is loaded so."""
    model, subject = MODELS[name]
    config, described = transformer_config(name, size), wan_library_model(model)
    transformer = random_part("WanTransformer3DModel", config, PRECISION, device, described.compute_buffers)
    write_component(folder / "transformer", transformer.cpu(), config)
    vae = {"_class_name": "AutoencoderKLWan", "z_dim": 16, "base_dim": 96 if size == "full" else 8}
    write_component(folder / "vae", random_part("AutoencoderKLWan", vae, torch.float32, device).cpu(), vae)
    text = LIBRARY_SUBJECTS[subject]
    width = text.full_text if size == "full" else text.tiny_text
    write_t5_and_tokenizer(folder, channels=width, max_length=MAX_TEXT_TOKENS, architecture="UMT5")
    write_scheduler(folder, SCHEDULER)
    if model.reads_image:
        write_image_encoder(folder)


def write_lora(path: Path, name: str, size: str) -> None:
    """Writes a LoRA of all attention products with random matrices, with the library's own names."""
    config = transformer_config(name, size)
    width = int(str(config["num_attention_heads"])) * int(str(config["attention_head_dim"]))
    found = {}
    for block in range(MODELS[name][0].num_layers):
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
    frames, height, width = size
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


def main() -> int:
    """Writes weights and manifest, submits, and prints the report's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="wan")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--num-steps", type=int, help="default: the family's, or those of --sampling")
    parser.add_argument("--lora", action="store_true", help=f"with a LoRA of rank {LORA_RANK} and random matrices")
    parser.add_argument("--size", choices=("full", "tiny"), default="full" if torch.cuda.is_available() else "tiny")
    parser.add_argument("submit", nargs="*", help="more words for `submit`, after --")
    options = parser.parse_args()
    full = options.size == "full"
    options.out.mkdir(parents=True, exist_ok=True)
    weights, manifest, output = (options.out / name for name in (options.model, "manifest.parquet", "run"))
    if not weights.exists():
        write_weights(weights, options.model, options.size, torch.device("cuda" if full else "cpu"))
    size = (81, 480, 832) if full else (5, 32, 32)
    image = options.out / "image.png" if MODELS[options.model][0].from_image else None
    if image is not None:
        Image.effect_mandelbrot((size[2], size[1]), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(image)
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
    found = {"exit": code, "wall_s": round(time.perf_counter() - began, 1), **figures(output)}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    (options.out / "wan_job.json").write_text(json.dumps(found, indent=1))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
