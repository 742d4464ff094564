"""Open-Sora-Plan's causal VAE: decoding and encoding, in tiles too, and its full-size layouts."""

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.families.open_sora_plan.causal_vae import LATENT_SCALE, CausalVAE, CausalVAEConfig
from tests.golden.cases import Case, close, only
from tests.golden.stdit3 import check_keys

BOUND = 2e-5
CONFIG_NAMES = tuple(field.name for field in fields(CausalVAEConfig))
HALVES = {"decode": ("decoder", "post_quant_conv"), "encode": ("encoder", "quant_conv")}
TILE_SIZES = {
    "latent_size": "tile_latent_min_size",
    "sample_size": "tile_sample_min_size",
    "latent_frames": "tile_latent_min_size_t",
    "sample_frames": "tile_sample_min_size_t",
    "overlap": "tile_overlap_factor",
}


@cache
def _load(weights: tuple[Path, ...], config: CausalVAEConfig, half: str) -> CausalVAE:
    model = CausalVAE(config).eval()
    state = {key.removeprefix("param."): v.float() for file in weights for key, v in load_file(file).items()}
    missing, surplus = model.load_state_dict(state, strict=False)
    assert not surplus, surplus
    # some cases have the weights of one half only, which must be complete
    needed = [key for key in missing if key.split(".")[0] in HALVES[half]]
    assert not needed, needed
    return model


def load_model(case: Case, half: str) -> CausalVAE:
    """Returns the case's VAE with its weights, by the published key names. `half`: the half that is used."""
    return _load(case.weight_files, CausalVAEConfig.from_published(case.facts["config"]), half)


def tiling_from(facts: dict[str, Any] | None) -> Tiling | None:
    """Reads the tiling: each size of a tile is a separate number, as in the reference."""
    if facts is None:
        return None
    only(facts, set(TILE_SIZES.values()), "tiling")
    return Tiling(**{ours: facts[theirs] for ours, theirs in TILE_SIZES.items() if theirs in facts})


def check_layout(case: Case) -> None:
    with torch.device("meta"):
        model = CausalVAE(CausalVAEConfig.from_published(case.facts["config"]))
    check_keys(model, case)


@torch.inference_mode()
def check_decode(case: Case) -> None:
    pixels = load_model(case, "decode").decode(case.inputs["z"], tiling=tiling_from(case.facts["tiling"]))
    assert pixels is not None
    close(pixels, case.tensors["out"], BOUND, "pixels")


@torch.inference_mode()
def check_encode(case: Case) -> None:
    expected = case.tensors
    posterior = load_model(case, "encode").encode(case.inputs["x"], tiling=tiling_from(case.facts["tiling"]))
    close(posterior.mean, expected["out.mean"], BOUND, "mean")
    close(posterior.logvar, expected["out.logvar"], BOUND, "log variance")
    close(posterior.mean * LATENT_SCALE, expected["out"], BOUND, "latents")
