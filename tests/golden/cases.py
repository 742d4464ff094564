"""Reads reference cases: a JSON file, its tensors, and the weights that it names. Remembers which values were read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

differences: dict[str, float] = {}
"""Largest difference in the current case, by precision; for bfloat16 as a share of the norm if norms are compared."""


class Stated(Mapping[str, Any]):
    """The values that a case states, by name. `unread`: the names that were never read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def unread(self) -> set[str]:
        return set(self._values) - self._read


class Inputs(Mapping[str, torch.Tensor]):
    """The tensors named `in.*`, without the prefix; `get` returns None for an absent one."""

    def __init__(self, tensors: Stated) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[f"in.{name}"]

    def __contains__(self, name: object) -> bool:
        return f"in.{name}" in self._tensors

    def __iter__(self) -> Iterator[str]:
        return (name[3:] for name in self._tensors if name.startswith("in."))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Case:
    """One reference case: a JSON file and, if the case has tensors, a file of tensors with the same name beside it."""

    path: Path
    root: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(self.root).with_suffix("").as_posix()

    @cached_property
    def facts(self) -> Stated:
        return Stated(self.content)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of the JSON file, without marking it as read; empty if there is no JSON object."""
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def args(self) -> Stated:
        return Stated(self.facts.get("args") or {})

    @property
    def tensor_file(self) -> Path:
        return self.path.with_suffix(".safetensors")

    @cached_property
    def tensor_names(self) -> frozenset[str]:
        """The names in the file of tensors; the tensors themselves are not read."""
        if not self.tensor_file.exists():
            return frozenset()
        try:
            with safe_open(self.tensor_file, "pt") as file:
                return frozenset(file.keys())
        except SafetensorError:
            return frozenset()

    @cached_property
    def tensors(self) -> Stated:
        return Stated(load_file(self.tensor_file) if self.tensor_file.exists() else {})

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs(self.tensors)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        stated = self.facts["weights"]
        return tuple((self.path.parent / name).resolve() for name in ([stated] if isinstance(stated, str) else stated))

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that the case names, in float32, without the `param.` prefix."""
        return {
            key.removeprefix("param."): value.float()
            for file in self.weight_files
            for key, value in load_file(file).items()
        }


def find_cases(root: Path) -> list[Case]:
    """Returns every JSON file whose content is neither weights nor a report, and every file of tensors without a JSON file.

    In `root` itself, outside of its folders, only files with tensors count: other files there describe the whole set.
    """
    # some of them are weights: those have a JSON file that says so
    named = {*root.rglob("*.json"), *(file.with_suffix(".json") for file in root.rglob("*.safetensors"))}
    cases = [Case(path, root) for path in sorted(named)]
    return [
        case
        for case in cases
        if not _is_companion(case.content) and (case.path.parent != root or case.tensor_file.exists())
    ]


def _is_companion(facts: Mapping[str, Any]) -> bool:
    weights = "n_param_tensors" in facts and not {"args", "weights"} & set(facts)
    return weights or set(facts) == {"note", "results"}


def only(values: Mapping[str, Any], names: Sequence[str] | frozenset[str] | set[str], where: str) -> None:
    """Fails for a stated name that is not known; the message says which one."""
    unknown = sorted(set(values) - set(names))
    assert not unknown, f"{where}: {', '.join(unknown)} not known; known are {', '.join(sorted(names))}"


def same(ours: object, stated: object, what: str) -> None:
    assert ours == stated, f"{what}: ours {_short(ours)}, stated {_short(stated)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


def same_levels(ours: Sequence[float], stated: Sequence[float], what: str) -> None:
    """Fails if float32 noise levels differ by more than one unit in the last place: a reference may round differently."""
    assert len(ours) == len(stated), f"{what}: {len(ours)} levels, stated {len(stated)}"
    a, b = (np.array(levels, dtype=np.float32) for levels in (ours, stated))
    # no level is below 0, so the bits of neighbouring levels, read as whole numbers, are neighbours too
    assert np.concatenate([a, b]).min(initial=0) >= 0, f"{what}: a level below 0, or not a number"
    apart = np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32).astype(np.int64))
    worst = int(apart.argmax()) if len(apart) else 0
    assert not len(apart) or apart[worst] <= 1, (
        f"{what}: level {worst} is {a[worst]!r}, stated {b[worst]!r}, {apart[worst]} units in the last place apart; allowed 1"
    )


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
