"""Single forwards of Open-Sora-Plan 1.2.0's transformer, and its full-size layout."""

import copy
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from pab.families.open_sora_plan.transformer import OpenSoraPlan, OpenSoraPlanConfig, open_sora_plan_config
from tests.golden.cases import Case, close, close_in_norm
from tests.golden.stdit3 import check_keys

FORWARD_BOUND = 1e-5
BFLOAT16_BOUND = 0.012
"""As a share of the whole output's norm; single elements may differ more."""


@cache
def _load(weights: tuple[Path, ...], config: OpenSoraPlanConfig) -> OpenSoraPlan:
    model = OpenSoraPlan(config).eval()
    state = {key.removeprefix("param."): v.float() for file in weights for key, v in load_file(file).items()}
    model.load_state_dict(state, strict=True)
    return model


def load_model(case: Case) -> OpenSoraPlan:
    """Returns the case's model with its weights, loaded strictly by the published key names."""
    return _load(case.weight_files, open_sora_plan_config(case.facts["config"]))


def check_layout(case: Case) -> None:
    """Checks that a model of the published size has exactly the published keys and shapes, in order."""
    with torch.device("meta"):
        model = OpenSoraPlan(open_sora_plan_config(case.facts["config"]))
    check_keys(model, case)


@torch.inference_mode()
def check_forward(case: Case) -> None:
    given = case.inputs
    rows = given["hidden_states"].shape[0]
    model, expected = load_model(case), case.tensors["out"]
    text = given["encoder_hidden_states"].reshape(rows, *given["encoder_hidden_states"].shape[-2:])
    text_mask = given.get("encoder_attention_mask")
    masks = {
        "text_mask_BL": None if text_mask is None else text_mask.reshape(rows, -1),
        "latent_mask_BTHW": given.get("attention_mask"),
    }
    close(model(given["hidden_states"], given["timestep"], text, **masks), expected, FORWARD_BOUND, case.name)
    half = copy.deepcopy(model).bfloat16()
    out = half(given["hidden_states"], given["timestep"], text, **masks)
    close_in_norm(out, expected, BFLOAT16_BOUND, f"{case.name} in bfloat16")
