"""Single forwards of Open-Sora 1.2's transformer, and its full-size layout."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pab.families.open_sora.stdit3 import ClipShape, STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from tests.golden.cases import Case, close, same

FORWARD_BOUND = 1e-5


def config_from(facts: dict[str, Any]) -> STDiT3Config:
    names = STDiT3Config.__dataclass_fields__
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items() if key in names}
    return STDiT3Config(**values)


@cache
def _load(weights: tuple[Path, ...], config: STDiT3Config) -> STDiT3:
    model = STDiT3(config).eval()
    state = {key.removeprefix("param."): v.float() for file in weights for key, v in load_file(file).items()}
    model.load_state_dict(state, strict=True)
    return model


def load_model(case: Case) -> STDiT3:
    """Returns the case's model with its weights, loaded strictly by the published key names."""
    return _load(case.weight_files, config_from(case.facts["config"]))


def check_layout(case: Case) -> None:
    """Checks that a model of the published size has exactly the published keys and shapes, in order."""
    with torch.device("meta"):
        model = STDiT3(config_from(case.facts["config"]))
    check_keys(model, case)


def check_keys(model: torch.nn.Module, case: Case) -> None:
    state = model.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == case.facts["state_dict"]
    same(len(state), case.facts["n_tensors"], "number of tensors")
    same(sum(value.numel() for value in state.values()), case.facts["n_elements"], "number of elements")


def clip_of(case: Case) -> ClipShape:
    """Returns the clip shape for the transformer. If the clips' sizes differ, the reference takes the first one for all."""
    given = case.inputs
    return ClipShape(
        height=float(given["height"][0]),
        width=float(given["width"][0]),
        fps=given["fps"],
        num_latent_frames=given["x"].shape[2],
    )


@torch.inference_mode()
def check_forward(case: Case) -> None:
    given = case.inputs
    out = load_model(case)(
        given["x"],
        given["timestep"],
        given["y"],
        clip=clip_of(case),
        mask_nL=given.get("mask"),
        active_BT=given.get("x_mask"),
    )
    close(out, case.tensors["out"], FORWARD_BOUND, case.name)
