"""Which figures a run is planned with: those of its own kind of device, else another's, scaled and called estimated.

Figures come from the file that the user names, from what the repository holds of a family, and last from the family's
estimates (`pab.family.CostFigures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pab.family import FLOAT8_PARTS, CostFigures, Family, read_figures
from pipeline.exits import UsageError

CPU = "cpu"
UNKNOWN_GPU = "NVIDIA H100"
"""What a GPU of a kind that nobody says is planned as, where only a CPU's figures are known."""
_PEAKS: Mapping[str, float] = {
    "GB200": 2500.0, "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "H800": 989.0, "H20": 148.0,
    "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L40": 181.0, "RTX 6000 Ada": 364.0, "A6000": 155.0, "A40": 150.0,
    "A10": 125.0, "L4": 121.0, "V100": 125.0, "RTX 5090": 209.0, "RTX 4090": 165.0, "RTX 3090": 71.0, CPU: 0.1,
}  # fmt: skip
"""TFLOP/s of dense products in 16-bit floats, as vendors state them; of a CPU what a few cores do. A name that holds one of
these is of that kind; of several the first counts."""

_WITHOUT_FLOAT8 = ("A100", "A800", "A6000", "A40", "A10", "V100", "RTX 3090", CPU)
_WITH_FLOAT8_ATTENTION = ("H200", "H100 PCIe", "H100", "H800", "H20")
_FLOAT8_TIMES: Mapping[str, float] = {"linears": 0.70, "attention": 0.77}
"""How many times as long 8-bit floats take, where a family's were not measured: what grows with tokens, and attention.
Measured were 0.65 (Wan 14B), 0.735 (1.3B) and 0.74 (Open-Sora); attention is its kernel's (docs/performance.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiguresSource:
    """Where figures may come from.

    `device`: what the jobs get, None if it is not known. `own`: of the user's file. `fast_decode`: whether decoders that can
    run faster do. `on_gpu`: whether the jobs get GPUs, so that a CPU's figures are never taken as they are.
    """

    device: str | None = None
    own: Mapping[str, Sequence[CostFigures]] = field(default_factory=dict)
    fast_decode: bool = False
    on_gpu: bool = False

    def of(self, family: Family, precision: str, float8: Sequence[str] = ()) -> CostFigures:
        """Returns the figures that a family's clips are planned with; `measured` is None if they are only estimated.

        If the device is not known, they are those of the device that was measured. `float8`: which of `FLOAT8_PARTS` are of
        8-bit floats; where that was not measured, by the ratios of families that were.
        """
        best = self._nearest(family, precision, float8).decoding(fast=self.fast_decode and family.fast_decode)
        return _brought(best, self._device(best), precision, float8)

    def told(self, family: Family, precision: str, float8: Sequence[str] = ()) -> str:
        """Returns what the figures are from, in words."""
        best = self._nearest(family, precision, float8)
        where = f"measured on {best.measured}" if best.measured else f"estimated for {best.device}"
        changes, device = [], self._device(best)
        if device is not None and kind_of(best.device) != kind_of(device):
            guess = " (nobody says what the jobs get: --gpu-kind)" if self.device is None else ""
            changes.append(f"scaled to {device}{guess} by the peak rates of both")
        elif best.precision != precision:
            changes.append(f"in {best.precision} and not {precision}")
        if (parts := [part for part in FLOAT8_PARTS if (part in best.float8) != (part in float8)]) != []:
            changes.append(f"scaled for {' and '.join(_said(part, float8) for part in parts)}")
        return f"{where}, {', '.join(changes)}: estimated" if changes else where

    def _device(self, best: CostFigures) -> str | None:
        return UNKNOWN_GPU if self.device is None and self.on_gpu and kind_of(best.device) == CPU else self.device

    def _nearest(self, family: Family, precision: str, float8: Sequence[str]) -> CostFigures:
        known = [*self.own.get(family.name, ()), *family.figures, family.cost]

        def apart(figures: CostFigures) -> tuple[bool, ...]:
            mine, theirs = self.device or figures.device, figures.device
            return (
                self.on_gpu and kind_of(theirs) == CPU,
                kind_of(mine) != kind_of(theirs),
                (kind_of(mine) == CPU) != (kind_of(theirs) == CPU),
                figures.measured is None,
                figures.precision != precision,
                # What products gain differs from model to model, attention's gain less so: products first.
                *((part in figures.float8) != (part in float8) for part in FLOAT8_PARTS),
            )

        return min(known, key=apart)


def _said(part: str, float8: Sequence[str]) -> str:
    return f"--{part} float8" if part in float8 else f"--{part} without 8-bit floats"


def kind_of(device: str) -> str:
    """Returns the kind of a device's name: "NVIDIA H100 80GB HBM3" is an H100, "cpu (x86_64)" a cpu."""
    if device.startswith(CPU):
        return CPU
    return next((kind for kind in _PEAKS if kind.lower() in device.lower()), device)


def float8_parts(device: str) -> tuple[str, ...]:
    """Returns which of `pab.family.FLOAT8_PARTS` a kind of device is known to have; of an unknown one none."""
    kind = kind_of(device)
    if kind not in _PEAKS or kind in _WITHOUT_FLOAT8:
        return ()
    return FLOAT8_PARTS if kind in _WITH_FLOAT8_ATTENTION else FLOAT8_PARTS[:1]


def _brought(figures: CostFigures, device: str | None, precision: str, float8: Sequence[str]) -> CostFigures:
    # What the host does in a step, and loading, are taken as they are.
    if (other := set(figures.float8) ^ set(float8)) != set():
        times = {part: _FLOAT8_TIMES[part] ** (1 if part in float8 else -1) for part in other}
        figures = replace(
            figures,
            measured=None,
            float8=tuple(float8),
            linear_s=figures.linear_s * times.get("linears", 1.0),
            quadratic_s=figures.quadratic_s * times.get("attention", 1.0),
        )
    if device is None or kind_of(device) == kind_of(figures.device):
        return figures if figures.precision == precision else replace(figures, measured=None)
    known = kind_of(figures.device) in _PEAKS and kind_of(device) in _PEAKS
    slower = _PEAKS[kind_of(figures.device)] / _PEAKS[kind_of(device)] if known else 1.0
    return replace(
        figures,
        measured=None,
        device=device,
        linear_s=figures.linear_s * slower,
        quadratic_s=figures.quadratic_s * slower,
        decode_s_per_pixel=figures.decode_s_per_pixel * slower,
    )


def read_figures_file(path: str, families: Mapping[str, Family]) -> dict[str, tuple[CostFigures, ...]]:
    """Reads the user's file of figures. Raises UsageError naming the place and what it needs."""
    try:
        found = read_figures(Path(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"--figures {error}") from error
    if unknown := sorted(set(found) - set(families)):
        raise UsageError(f"--figures {path}: family {unknown[0]!r} is not known, allowed: {', '.join(families)}")
    return found
