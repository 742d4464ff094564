"""Open-Sora 1.2's VAE: decoding, encoding with recorded noise, frame counts, and its full-size layout."""

from functools import cache
from pathlib import Path

import torch

from pab.families.open_sora.temporal_vae import TemporalVAEConfig
from pab.families.open_sora.vae import OpenSoraVAE, OpenSoraVAEConfig
from pab.parallel.mesh import Axis
from pab.vae.image_vae import ImageVAEConfig
from tests.golden.cases import Case, close

BOUND = 2e-5


def config_from(spatial: dict, temporal: dict, chunk_frames: int | None) -> OpenSoraVAEConfig:
    temporal_names = {"filters", "num_res_blocks", "num_groups", "channel_multipliers"}
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in temporal.items() if key in temporal_names}
    return OpenSoraVAEConfig(
        spatial=ImageVAEConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in spatial.items()}),
        temporal=TemporalVAEConfig(**sizes),
        chunk_frames=chunk_frames,
    )


@cache
def _load(weights: Path, case: Case) -> OpenSoraVAE:
    facts = Case(weights.with_suffix(".json"), case.root).facts
    config = config_from(facts["spatial_config"], facts["temporal_config"], facts["micro_frame_size"])
    model = OpenSoraVAE(config).eval()
    model.load_state_dict(case.weights(weights.name), strict=True)
    return model


def load_model(case: Case) -> OpenSoraVAE:
    """The case's VAE with its weights, loaded strictly by the published key names."""
    return _load(case.path.parent / case.facts["weights"], case)


@torch.inference_mode()
def check(case: Case) -> None:
    stem = case.path.stem
    if stem.startswith("full_layout"):
        check_layout(case)
    elif stem == "latent_frames":
        with torch.device("meta"):
            vae = OpenSoraVAE(OpenSoraVAEConfig())
        for num_frames, latent_frames in case.facts["rows"]:
            assert vae.latent_frames(num_frames) == latent_frames, num_frames
    elif "x" in case.inputs():
        check_encode(case)
    else:
        check_decode(case)


def check_layout(case: Case) -> None:
    """A VAE of the published size has exactly the published keys and shapes, in order, and the published constants."""
    facts = case.facts["config"]
    with torch.device("meta"):
        model = OpenSoraVAE(config_from(facts["spatial"], facts["temporal"], facts["micro_frame_size"]))
    assert model.config == OpenSoraVAEConfig()
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == case.facts["state_dict"]
    assert facts["micro_batch_size"] == model.config.micro_batch


def check_decode(case: Case) -> None:
    vae, given, num_frames = load_model(case), case.inputs(), case.facts["num_frames"]
    close(vae.image_latents(given["z"], num_frames, Axis()), case.tensors["mid.x_z"], BOUND, "temporal decoder")
    close(vae.decode(given["z"], num_frames), case.tensors["out"], BOUND, "pixels")


def check_encode(case: Case) -> None:
    vae, given = load_model(case), case.inputs()
    chunks = sorted((key for key in given if key.startswith("noise_temporal")), key=lambda key: int(key.split(".")[1]))
    frames = given["noise_spatial"].split(vae.config.micro_batch)
    recorded = iter([*frames, *(given[key] for key in chunks)])

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        drawn = next(recorded)
        assert drawn.shape == shape
        return drawn

    close(vae.encode(given["x"], noise), case.tensors["out"], BOUND, "latents")
    assert next(recorded, None) is None, "noise was left over"
