"""Adds LoRAs to a transformer's weights while they are loaded: in float32, before the cast to the model's precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.weights.files import CheckpointError
from pab.weights.lora import Lora, LoraRules, find_lora, read_header
from pab.weights.lora_keys import Change, find_changes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Addition:
    """One change of one LoRA; `file` is its open safetensors file."""

    file: Any
    change: Change
    strength: float

    def tensor(self, device: torch.device) -> Tensor:
        """Returns what is added, float32, of the shape of the parameter's rows."""
        change, scale = self.change, self.change.scale
        if change.alpha is not None:
            scale = float(self._read(change.alpha)) / change.rank
        whole = change.whole or change.up
        assert whole is not None, "a change is whole or a product"
        rows = self._read(whole)[change.first_row :][: change.rows].to(device, torch.float32)
        if change.down is not None:
            down = self._read(change.down).to(device, torch.float32)
            rows = (rows.flatten(1) @ down.flatten(1)).unflatten(1, down.shape[1:])
        return self.strength * scale * rows

    def _read(self, key: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(key)
        return tensor


def lora_changes(
    loras: Sequence[Lora], parameters: Mapping[str, Tensor], rules: LoraRules
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns by parameter what gives its value with all LoRAs added, in their order: float32, on the value's device.

    `loras`: of one component, whose weights are `parameters`. Fetches files from the hub. Raises CheckpointError, which names
    key and file, for a key that fits nowhere or a shape that does not fit.
    """
    additions: dict[str, list[_Addition]] = {}
    shapes = {key: tuple(value.shape) for key, value in parameters.items()}
    for lora in loras:
        path = find_lora(lora)
        file = _opened(str(path))
        for change in find_changes(read_header(path), shapes, rules, component=lora.component, file=lora.place):
            addition = _Addition(file=file, change=change, strength=lora.strength)
            additions.setdefault(change.parameter, []).append(addition)
    return {parameter: _adder(of_one) for parameter, of_one in additions.items()}


def _opened(path: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error


def _adder(additions: Sequence[_Addition]) -> Callable[[Tensor], Tensor]:
    def add(value: Tensor) -> Tensor:
        total = value.float()
        for addition in additions:
            total = total + addition.tensor(value.device)
        return total

    return add
