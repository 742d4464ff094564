"""Single forwards of Latte-1's and Open-Sora-Plan 1.1.0's transformer, and their full-size layouts."""

import copy
from functools import cache
from pathlib import Path

import torch

from pab.families.latte.blocks import LatteConfig
from pab.families.latte.transformer import Latte, latte_config
from tests.golden.cases import Case, close, close_in_norm

FORWARD_BOUND = 1e-5
BFLOAT16_BOUND = 0.012
"""Of the whole output's norm; one element may be farther off."""


@cache
def _load(weights: Path, config: LatteConfig, case: Case) -> Latte:
    model = Latte(config).eval()
    model.load_state_dict(case.weights(weights.name), strict=True)
    return model


def load_model(case: Case) -> Latte:
    """The case's model with its weights, loaded strictly by the published key names."""
    return _load(case.path.parent / case.facts["weights"], latte_config(case.facts["config"]), case)


def check(case: Case) -> None:
    if case.path.stem.startswith("full_layout"):
        check_layout(case)
    else:
        check_forward(case)


def check_layout(case: Case) -> None:
    """A model of the published size has exactly the published keys and shapes, in order."""
    with torch.device("meta"):
        model = Latte(latte_config(case.facts["config"]))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == case.facts["state_dict"]


@torch.inference_mode()
def check_forward(case: Case) -> None:
    given = case.inputs()
    mask = given.get("encoder_attention_mask")
    rows = given["hidden_states"].shape[0]
    text = given["encoder_hidden_states"].reshape(rows, *given["encoder_hidden_states"].shape[-2:])
    options = {
        "text_mask_BL": None if mask is None else mask.reshape(rows, -1),
        "latent_mask_BTHW": given.get("attention_mask"),
        "temporal": case.facts["enable_temporal_attentions"],
    }
    model, expected = load_model(case), case.tensors["out"]
    close(model(given["hidden_states"], given["timestep"], text, **options), expected, FORWARD_BOUND, case.name)
    half = copy.deepcopy(model).bfloat16()
    out = half(given["hidden_states"], given["timestep"], text, **options)
    close_in_norm(out, expected, BFLOAT16_BOUND, f"{case.name} in bfloat16")
