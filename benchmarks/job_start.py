"""Times what a job of Open-Sora 1.2 does for the first time: imports, libraries, kernels, graphs, decoding.

Two processes do it one after the other: the first finds an empty compile cache, the second one what the first has left, as a
node's second job does. Random weights; steps without reuse. On a machine without a GPU a tiny model runs, and graphs are
captured but no code is generated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CACHES = ("empty", "filled")


@dataclass(slots=True)
class Firsts:
    """What was done so far, with its seconds. Waits for the device after each."""

    told: list[tuple[str, float]] = field(default_factory=list)
    synchronize: Callable[[], None] = lambda: None

    def time(self, what: str, do: Callable[[], Any]) -> Any:
        """Does something, notes how long it took, and returns its result."""
        began = time.perf_counter()
        found = do()
        self.synchronize()
        self.told.append((what, round(time.perf_counter() - began, 3)))
        return found


def measure(cache: str, words: str, num_steps: int) -> Firsts:
    """Does everything once in this process, steps and decoding twice. `words`: of a row of `bench`, such as `float8`."""
    firsts = Firsts()
    firsts.time("import torch", lambda: __import__("torch"))
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        firsts.synchronize = torch.cuda.synchronize
    firsts.time("a tensor on the device", lambda: torch.zeros(1, device=device))
    firsts.time("import what compiles", lambda: __import__("torch._inductor.compile_fx"))
    firsts.time("import the model's code", lambda: __import__("jobs.bench.job_model"))

    # Here, behind the imports that are timed: at the top of the file they would import torch before its time is taken.
    from dataclasses import replace

    from jobs.bench.groups import GROUPS
    from jobs.bench.job_model import FULL_SIZE, TINY_SIZE, load_random, load_tiny
    from jobs.bench.rows import parse_row
    from jobs.bench.subjects import DTYPES, precision_on
    from pab.broadcast.rules import NO_BROADCAST
    from pab.execution.compile_cache import compile_cache
    from pab.execution.compiled import executing, run_as
    from pab.families.open_sora.family import OPEN_SORA
    from pab.family import ClipRequest, LoadRequest
    from pab.parallel.mesh import NodeGroup
    from pab.sampling.denoise import denoise, initial_noise, plan_for

    precision, (height, width, num_frames) = precision_on(device), FULL_SIZE if cuda else TINY_SIZE
    (group,) = [each for each in GROUPS if each.name == "open_sora"]
    execution = replace(parse_row(group, f"compiled none {words}").execution(device.type, precision), decode="fast")
    square = torch.randn(64, 64, device=device, dtype=DTYPES[precision])
    heads = torch.randn(2, 16, 64, 72, device=device, dtype=DTYPES[precision])
    load = LoadRequest(weights=None, precision=precision, device=str(device))
    model = firsts.time("random weights", lambda: (load_random if cuda else load_tiny)(load))
    request = ClipRequest(
        prompt="a red circle", negative_prompt=None, seed=0, num_frames=num_frames, height=height, width=width, fps=24,
        num_steps=num_steps, guidance_scale=7.0,
    )  # fmt: skip
    plan, alone = plan_for(OPEN_SORA, request, NO_BROADCAST, precision), NodeGroup(device=device)

    def clip() -> Any:
        return denoise(
            model, request, prompt=model.encode_prompts([request])[0],
            noise=initial_noise(request, model.latent_shape(request)), plan=plan, group=alone,
        )  # fmt: skip

    with compile_cache(cache, execution.attention), torch.inference_mode():
        firsts.time("a product", lambda: square @ square)
        with executing(execution, precision=precision):
            attend = torch.nn.functional.scaled_dot_product_attention
            firsts.time("an attention", lambda: attend(heads, heads, heads))
            run_as(model, execution, backend="inductor" if cuda else "eager")
            done = firsts.time(f"the first clip of {num_steps} steps", clip)
            firsts.told += [(f"  its step {step}", round(s, 3)) for step, s in enumerate(done.step_seconds[:2])]
            done = firsts.time("the second", clip)
            for name in ("decoding it", "decoding it again"):
                firsts.time(name, lambda: model.decode(done.latents, request, alone).fetch())
    return firsts


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file")
    found.add_argument("--words", default="float8", help="of a row of `bench`; '' for bfloat16 (default: %(default)s)")
    found.add_argument("--num-steps", type=int, default=3)
    found.add_argument("--cache", metavar="DIR", help="measure once, in this process, with this compile cache")
    return found


def table(found: dict[str, list[tuple[str, float]]]) -> str:
    """Returns the lines that are printed: seconds by what was done, and by how the cache was found."""
    lines = [f"{'':<28}" + "".join(f"{name:>10}" for name in found)]
    for number, (what, _) in enumerate(next(iter(found.values()))):
        lines.append(f"{what:<28}" + "".join(f"{told[number][1]:>10.3f}" for told in found.values()))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    options = parser().parse_args(arguments)
    if options.cache is not None:
        options.out.write_text(json.dumps(measure(options.cache, options.words, options.num_steps).told) + "\n")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.json"
        words = ["--out", str(one), "--words", options.words, "--num-steps", str(options.num_steps)]
        for name in CACHES:
            cache = ["--cache", str(Path(folder) / "cache")]
            subprocess.run([sys.executable, "-m", "benchmarks.job_start", *words, *cache], check=True)
            found[name] = json.loads(one.read_text())
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
