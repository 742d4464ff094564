"""Single forwards of Open-Sora-Plan 1.2.0's transformer, and its full-size layout."""

from functools import cache
from pathlib import Path

import torch

from pab.models.open_sora_plan import OpenSoraPlan, OpenSoraPlanConfig, open_sora_plan_config
from tests.golden.cases import Case, close

FORWARD_BOUND = 1e-5


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
    out = load_model(case)(
        given["hidden_states"],
        given["timestep"],
        given["encoder_hidden_states"].squeeze(1),
        text_mask_BL=given["encoder_attention_mask"].squeeze(1),
        latent_mask_BTHW=given["attention_mask"],
    )
    close(out, case.tensors["out"], FORWARD_BOUND, case.name)
