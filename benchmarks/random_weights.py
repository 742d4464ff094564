"""Writes a model of full size with random weights, laid out as it is published: for commands that load a folder of weights.

Transformer and VAE have their published sizes. The encoders of text and image are small; their states are as wide as the
transformer reads them. `--weights NAME=DIR` of `submit`, `calibrate` and `bench --figures` then takes the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from jobs.bench.library_subjects import LIBRARY_SUBJECTS, random_part
from jobs.bench.subjects import random_weights
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.tiny import write_tiny_open_sora
from pab.families.open_sora.vae import SCALE, SHIFT, OpenSoraVAE, OpenSoraVAEConfig
from pab.families.wan.config import MAX_TEXT_TOKENS, WAN_14B_I2V_480P_MODEL, WAN_14B_MODEL, WAN_MODEL, WanModel
from pab.families.wan.load import wan_library_model
from pab.families.wan.tiny import IMAGE_CHANNELS, SCHEDULER, write_image_encoder
from pab.weights.tiny_parts import write_component, write_scheduler, write_t5, write_t5_and_tokenizer

WAN_MODELS: Mapping[str, tuple[WanModel, str]] = {
    "wan": (WAN_MODEL, "wan"),
    "wan_14b": (WAN_14B_MODEL, "wan_14b"),
    "wan_14b_i2v_480p": (WAN_14B_I2V_480P_MODEL, "wan_14b"),
}
"""By family: the model, and the group of the benchmark's rows whose widths it has."""
OPEN_SORA = "open_sora"
NAMES = (OPEN_SORA, *WAN_MODELS)
SIZES = ("full", "tiny")
PRECISION = torch.bfloat16


def write_weights(folder: Path, name: str, size: str, device: torch.device) -> None:
    """Writes a model's folder, which is there when it is whole; matrices are made on the device.

    Raises KeyError for a name that is not in NAMES.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    _write(beside, name, size, device)
    beside.rename(folder)


def _write(folder: Path, name: str, size: str, device: torch.device) -> None:
    if (name, size) == (OPEN_SORA, "tiny"):
        write_tiny_open_sora(folder, 0)
    elif name == OPEN_SORA:
        _write_open_sora(folder, device)
    else:
        _write_wan(folder, name, size, device)


def _write_open_sora(folder: Path, device: torch.device) -> None:
    config, vae_config = STDiT3Config(), OpenSoraVAEConfig()
    transformer = random_weights(lambda: STDiT3(config), device, PRECISION)
    write_component(folder / "transformer", transformer.cpu(), {"model_type": "STDiT3", **asdict(config)})
    torch.manual_seed(0)
    with device:
        vae = OpenSoraVAE(vae_config)
    written = {
        "vae_2d": asdict(vae_config.spatial), "vae_temporal": asdict(vae_config.temporal),
        "micro_frame_size": vae_config.chunk_frames, "scale": SCALE, "shift": SHIFT,
    }  # fmt: skip
    write_component(folder / "vae", vae.to(PRECISION).cpu(), written)
    write_t5(folder / "text_encoder", channels=config.caption_channels, max_length=config.model_max_length)


def wan_config(name: str, size: str) -> dict[str, object]:
    """Returns the configuration of a Wan's transformer: the published widths, or narrow ones, and the published depth."""
    model, subject = WAN_MODELS[name]
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


def _write_wan(folder: Path, name: str, size: str, device: torch.device) -> None:
    # As the diffusers library lays it out; bfloat16 where it is loaded so.
    model, subject = WAN_MODELS[name]
    config, described = wan_config(name, size), wan_library_model(model)
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


def main(arguments: list[str] | None = None) -> None:
    """Writes the folder; one that is there already is left as it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="full" if torch.cuda.is_available() else "tiny")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    if not options.folder.exists():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        write_weights(options.folder, options.name, options.size, device)
    sys.stdout.write(f"{options.folder}: {options.name}, {time.perf_counter() - began:.1f} s\n")


if __name__ == "__main__":
    main()
