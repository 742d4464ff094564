"""Cases that tests make: copies of shipped cases under other names, edited so that their facts still fit their tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.cases import Case

SHIPPED = Path(__file__).parents[1] / "data" / "golden"


def copy_case(name: str, folder: Path, new_name: str = "a/renamed") -> Case:
    """Copies a shipped case and its weights under another name."""
    source = SHIPPED / name
    target = folder / new_name
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = json.loads(source.with_suffix(".json").read_text())
    stated = facts.get("weights", [])
    for weights in [stated] if isinstance(stated, str) else stated:
        for suffix in (".json", ".safetensors"):
            shutil.copy((source.parent / weights).with_suffix(suffix), (target.parent / weights).with_suffix(suffix))
    target.with_suffix(".json").write_text(json.dumps(facts))
    if source.with_suffix(".safetensors").exists():
        shutil.copy(source.with_suffix(".safetensors"), target.with_suffix(".safetensors"))
    return Case(target.with_suffix(".json"), folder)


def change(case: Case, edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Case:
    """Edits facts and tensors of a copied case, and updates what the case states of its tensors."""
    facts = json.loads(case.path.read_text())
    tensors = load_file(case.tensor_file) if case.tensor_file.exists() else {}
    edit(facts, tensors)
    if tensors:
        facts["tensors"] = {name: stated(tensor) for name, tensor in tensors.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, case.tensor_file)
    case.path.write_text(json.dumps(facts))
    return Case(case.path, case.root)


def stated(tensor: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.dtype != torch.bool:
        facts["absmax"] = tensor.double().abs().max().item()
    return facts
