"""Compiles the kernels that hold a row of tokens, as their launchers start them on an H100, and prints what each one needs.

No GPU is needed: nothing is started. A line of JSON a kernel: its name, the width, and bytes a thread has no registers for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from pab.kernels.gpu import float8, kept_int8, modulated_norm, rotated_norm

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
BLOCKS = (1152, 1536, 2048, 3072, 4096, 5120)
"""Widths of the published models' blocks."""
INSIDE = (8192, 8960, 12288, 13824, 15360, 16384)
"""Widths inside of their MLPs, and of what the single blocks of HunyuanVideo multiply at once."""


class H100(DriverBase):  # type: ignore[misc]
    """Says what Triton asks of a driver before it starts a kernel."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(width: int) -> dict[str, Callable[[], object]]:
    """Returns what starts the kernels on tokens of a block's width."""
    x = torch.zeros(1, 1, 1, width, dtype=torch.bfloat16)
    rotation = 2 * [torch.zeros(1, 1, 1, 128)]
    norm = torch.ones(width, dtype=torch.bfloat16)
    found: dict[str, Callable[[], object]] = {
        "rows": lambda: float8.rows(x, gelu=False),
        "gated sum": lambda: float8.gated_sum(x, x, x, keeps=True),
        "norm": lambda: modulated_norm.launch(x, (x, x), x, x, eps=1e-6),
        "rows of a norm": lambda: modulated_norm.launch_rows(x, (x, x), x, x, eps=1e-6),
        "pack": lambda: kept_int8.pack(x),
        "unpack": lambda: kept_int8.unpack(x.to(torch.int8), torch.ones(1, 1, 1, 1), torch.bfloat16),
    }
    for name, bound in (("rotated norm", None), ("rotated norm in 8 bits", torch.ones(()))):

        def rotated(bound: Tensor | None = bound) -> Tensor:
            return rotated_norm.launch(x[0], norm, *rotation, heads=width // 128, eps=1e-6, bound=bound)

        found[name] = rotated
    return found


def main() -> None:
    """Prints the lines."""
    triton.runtime.driver.set_active(H100())
    compile_and_start = JITFunction.run
    compiled: list[Any] = []

    def only_compile(
        self: JITFunction[Any], *arguments: object, grid: object, warmup: bool, **options: object
    ) -> object:
        compiled.append(compile_and_start(self, *arguments, grid=grid, warmup=True, **options))
        return compiled[-1]

    JITFunction.run = only_compile
    for width in (*BLOCKS, *INSIDE):
        wide = torch.zeros(1, width, dtype=torch.bfloat16)
        mlp = {"rows of GELU": lambda wide=wide: float8.rows(wide, gelu=True)}
        for name, start in {**mlp, **(launches(width) if width in BLOCKS else {})}.items():
            start()
            sys.stdout.write(json.dumps({"name": name, "width": width, "bytes": beyond_registers(compiled[-1])}) + "\n")


def beyond_registers(kernel: Any) -> int:
    """Returns what a thread of a compiled kernel keeps in the device's memory, because it has no register for it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", told)[0])


if __name__ == "__main__":
    main()
