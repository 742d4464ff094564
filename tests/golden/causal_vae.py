"""Open-Sora-Plan's causal VAE: decoding, in tiles too, encoding, and its full-size layouts."""

from functools import cache
from pathlib import Path

import torch

from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.families.open_sora_plan.causal_vae import LATENT_SCALE, CausalVAE, CausalVAEConfig
from tests.golden.cases import Case, close

BOUND = 2e-5


@cache
def _load(weights: tuple[Path, ...], config: CausalVAEConfig, case: Case) -> CausalVAE:
    model = CausalVAE(config).eval()
    state = {key: value for file in weights for key, value in case.weights(file.name).items()}
    missing, surplus = model.load_state_dict(state, strict=False)
    assert not surplus, surplus
    # some cases come with the decoder's half of the weights only
    absent = {key.split(".")[0] for key in missing}
    assert absent <= {"encoder", "quant_conv"}, absent
    assert not absent or len(weights) == 1
    return model


def load_model(case: Case) -> CausalVAE:
    """The case's VAE with its weights, by the published key names."""
    files = tuple(case.path.parent / name for name in case.facts["weights"])
    return _load(files, CausalVAEConfig.from_published(case.facts["config"]), case)


def tiling_from(facts: dict | None) -> Tiling | None:
    if facts is None:
        return None
    tiling = Tiling(
        latent_size=facts["tile_latent_min_size"],
        sample_size=facts["tile_sample_min_size"],
        latent_frames=facts["tile_latent_min_size_t"],
        overlap=facts["tile_overlap_factor"],
    )
    assert (tiling.latent_frames - 1) * 4 + 1 == facts["tile_sample_min_size_t"]
    return tiling


@torch.inference_mode()
def check(case: Case) -> None:
    given, expected = case.inputs(), case.tensors
    if case.path.stem.startswith("full_layout"):
        with torch.device("meta"):
            model = CausalVAE(CausalVAEConfig.from_published(case.facts["config"]))
        assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == case.facts["state_dict"]
    elif "x" in given:
        posterior = load_model(case).encode(given["x"])
        close(posterior.mean, expected["out.mean"], BOUND, "mean")
        close(posterior.logvar, expected["out.logvar"], BOUND, "log variance")
        close(posterior.mean * LATENT_SCALE, expected["out"], BOUND, "latents")
    else:
        close(
            load_model(case).decode(given["z"], tiling=tiling_from(case.facts["tiling"])),
            expected["out"],
            BOUND,
            "pixels",
        )
