"""Single forwards of Open-Sora 1.2's transformer, and its full-size layout."""

from functools import cache
from pathlib import Path

import torch

from pab.families.open_sora.stdit3 import ClipShape, STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from tests.golden.cases import Case, close

FORWARD_BOUND = 1e-5


def config_from(facts: dict) -> STDiT3Config:
    names = STDiT3Config.__dataclass_fields__
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items() if key in names}
    return STDiT3Config(**values)


@cache
def _load(weights: Path, config: STDiT3Config, case: Case) -> STDiT3:
    model = STDiT3(config).eval()
    model.load_state_dict(case.weights(), strict=True)
    return model


def load_model(case: Case) -> STDiT3:
    """The case's model with its weights, loaded strictly by the published key names."""
    return _load((case.path.parent / case.facts["weights"]).resolve(), config_from(case.facts["config"]), case)


def check(case: Case) -> None:
    if case.path.stem.startswith("full_layout"):
        check_layout(case)
    else:
        check_forward(case)


def check_layout(case: Case) -> None:
    """A model of the published size has exactly the published keys and shapes, in order."""
    with torch.device("meta"):
        model = STDiT3(config_from(case.facts["config"]))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == case.facts["state_dict"]


@torch.inference_mode()
def check_forward(case: Case) -> None:
    given = case.inputs()
    clip = ClipShape(
        height=float(given["height"][0]),
        width=float(given["width"][0]),
        fps=given["fps"],
        num_latent_frames=given["x"].shape[2],
    )
    out = load_model(case)(
        given["x"], given["timestep"], given["y"], clip=clip, mask_nL=given.get("mask"), active_BT=given.get("x_mask")
    )
    close(out, case.tensors["out"], FORWARD_BOUND, case.name)
