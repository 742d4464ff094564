"""Open-Sora 1.2's VAE: decoding, encoding with recorded noise, frame counts, and its full-size layout."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import SCALE, SHIFT, OpenSoraVAE, OpenSoraVAEConfig
from pab.parallel.mesh import Axis
from pab.vae.image_vae import ImageVAEConfig
from tests.golden.cases import Case, close, only, same
from tests.golden.stdit3 import check_keys

BOUND = 2e-5
TEMPORAL_NAMES = {
    "filters": "filters",
    "num_res_blocks": "num_res_blocks",
    "num_groups": "num_groups",
    "channel_multipliers": "channel_multipliers",
    "temporal_downsample": "downsample",
}


def config_from(spatial: dict[str, Any], temporal: dict[str, Any], chunk_frames: int | None) -> OpenSoraVAEConfig:
    only(spatial, {"block_out_channels", "layers_per_block", "norm_num_groups", "latent_channels"}, "spatial config")
    only(temporal, set(TEMPORAL_NAMES), "temporal config")
    sizes = {TEMPORAL_NAMES[key]: tuple(v) if isinstance(v, list) else v for key, v in temporal.items()}
    return OpenSoraVAEConfig(
        spatial=ImageVAEConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in spatial.items()}),
        temporal=TemporalVAEConfig(**sizes),
        chunk_frames=chunk_frames,
    )


@cache
def _load(weights: Path, chunk_frames: int | None) -> OpenSoraVAE:
    facts = json.loads(weights.with_suffix(".json").read_text())
    model = OpenSoraVAE(config_from(facts["spatial_config"], facts["temporal_config"], chunk_frames)).eval()
    state = {key.removeprefix("param."): value.float() for key, value in load_file(weights).items()}
    model.load_state_dict(state, strict=True)
    return model


def load_model(case: Case) -> OpenSoraVAE:
    """Returns the case's VAE: sizes from the file of weights, chunks from the case; loaded by the published key names."""
    (weights,) = case.weight_files
    return _load(weights, case.facts["micro_frame_size"])


def check_frame_counts(case: Case) -> None:
    with torch.device("meta"):
        vae = OpenSoraVAE(OpenSoraVAEConfig(chunk_frames=case.facts.get("micro_frame_size", 17)))
    for num_frames, latent_frames in case.facts["rows"]:
        same(vae.latent_frames(num_frames), latent_frames, f"latent frames of {num_frames}")


def check_layout(case: Case) -> None:
    """Checks that a VAE of the published size has exactly the published keys and shapes, in order, and the constants."""
    facts = case.facts["config"]
    only(facts, {"spatial", "temporal", "micro_frame_size", "micro_batch_size", "shift", "scale"}, "config")
    with torch.device("meta"):
        model = OpenSoraVAE(config_from(facts["spatial"], facts["temporal"], facts["micro_frame_size"]))
    assert model.config == OpenSoraVAEConfig()
    check_keys(model, case)
    same(model.config.micro_batch, facts["micro_batch_size"], "micro batch")
    same((list(SHIFT), list(SCALE)), (facts["shift"], facts["scale"]), "shift and scale")


@torch.inference_mode()
def check_decode(case: Case) -> None:
    vae, given, num_frames = load_model(case), case.inputs, case.facts["num_frames"]
    if "mid.x_z" in case.tensors:
        close(vae.image_latents(given["z"], num_frames, Axis()), case.tensors["mid.x_z"], BOUND, "temporal decoder")
    close(vae.decode(given["z"], num_frames), case.tensors["out"], BOUND, "pixels")


@torch.inference_mode()
def check_encode(case: Case) -> None:
    vae, given = load_model(case), case.inputs
    same(given["x"].shape[2], case.facts["num_frames"], "frames")
    # "noise_temporal.<chunk>"; a VAE without chunks may leave the number out
    chunks = sorted((key for key in given if key.startswith("noise_temporal")), key=lambda key: int("0" + key[15:]))
    frames = given["noise_spatial"].split(vae.config.micro_batch)
    recorded = iter([*frames, *(given[key] for key in chunks)])

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        drawn = next(recorded)
        assert drawn.shape == shape
        return drawn

    close(vae.encode(given["x"], noise), case.tensors["out"], BOUND, "latents")
    assert next(recorded, None) is None, "noise was left over"
