"""Reading reference cases: a JSON file, its tensors, and the weights it names."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

differences: dict[str, float] = {}
"""Largest difference of the case in work, by precision; of bfloat16 as a part of the norm where that is compared."""


@dataclass(frozen=True)
class Case:
    """One reference case: `folder/name.json` with `name.safetensors` beside it when it holds tensors."""

    path: Path
    root: Path

    @property
    def folder(self) -> str:
        return self.path.parent.relative_to(self.root).as_posix()

    @property
    def kind(self) -> str:
        """What decides which check serves the case: the folder, or in `pab/`, which holds one file a family, the file."""
        return f"pab/{self.path.stem}" if self.folder == "pab" else self.folder

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.path.stem}"

    @cached_property
    def facts(self) -> dict:
        return json.loads(self.path.read_text())

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        file = self.path.with_suffix(".safetensors")
        return load_file(file) if file.exists() else {}

    def inputs(self) -> dict[str, torch.Tensor]:
        """Tensors named `in.*`, without the prefix."""
        return {key[3:]: value for key, value in self.tensors.items() if key.startswith("in.")}

    def weights(self, file: str | None = None) -> dict[str, torch.Tensor]:
        """The named weights in float32, without the `param.` prefix."""
        stored = load_file(self.path.parent / (file or self.facts["weights"]))
        return {key.removeprefix("param."): value.float() for key, value in stored.items()}


def find_cases(root: Path) -> list[Case]:
    """Every JSON file one folder down that is neither weights nor a report."""
    return [
        Case(path, root)
        for path in sorted(root.glob("*/*.json"))
        if not path.name.startswith("weights_") and path.name != "report.json"
    ]


def close(actual: torch.Tensor, expected: torch.Tensor, bound: float, what: str) -> None:
    """Fails when the largest difference exceeds the bound; the message says where and by how much."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().max().item()
    _note(difference, what)
    assert difference <= bound, f"{what}: largest difference {difference:.3g}, bound {bound:.3g}"


def close_in_norm(actual: torch.Tensor, expected: torch.Tensor, bound: float, what: str) -> None:
    """Fails when the difference's norm exceeds the bound times the expected norm."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
    _note(difference, what)
    assert difference <= bound, f"{what}: off by {difference:.3g} of the norm, bound {bound:.3g}"


def _note(difference: float, what: str) -> None:
    precision = "bfloat16" if "bfloat16" in what else "float32"
    differences[precision] = max(differences.get(precision, 0.0), difference)
