"""Single forwards of Open-Sora-Plan 1.2.0's transformer, and its full-size layout."""

import copy
from functools import cache
from pathlib import Path

import torch

from pab.families.open_sora_plan.transformer import OpenSoraPlan, OpenSoraPlanConfig, open_sora_plan_config
from tests.golden.cases import Case, close, close_in_norm

FORWARD_BOUND = 1e-5
BFLOAT16_BOUND = 0.012
"""Of the whole output's norm; one element may be farther off."""


@cache
def _load(weights: Path, config: OpenSoraPlanConfig, case: Case) -> OpenSoraPlan:
    model = OpenSoraPlan(config).eval()
    model.load_state_dict(case.weights(weights.name), strict=True)
    return model


def load_model(case: Case) -> OpenSoraPlan:
    """The case's model with its weights, loaded strictly by the published key names."""
    return _load(case.path.parent / case.facts["weights"], open_sora_plan_config(case.facts["config"]), case)


def check(case: Case) -> None:
    if case.path.stem.startswith("full_layout"):
        check_layout(case)
    else:
        check_forward(case)


def check_layout(case: Case) -> None:
    """A model of the published size has exactly the published keys and shapes, in order."""
    with torch.device("meta"):
        model = OpenSoraPlan(open_sora_plan_config(case.facts["config"]))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == case.facts["state_dict"]


@torch.inference_mode()
def check_forward(case: Case) -> None:
    given = case.inputs()
    model, expected = load_model(case), case.tensors["out"]
    text = given["encoder_hidden_states"].squeeze(1)
    masks = {
        "text_mask_BL": given["encoder_attention_mask"].squeeze(1),
        "latent_mask_BTHW": given["attention_mask"],
    }
    close(model(given["hidden_states"], given["timestep"], text, **masks), expected, FORWARD_BOUND, case.name)
    half = copy.deepcopy(model).bfloat16()
    out = half(given["hidden_states"], given["timestep"], text, **masks)
    close_in_norm(out, expected, BFLOAT16_BOUND, f"{case.name} in bfloat16")
