"""Times single operations of Open-Sora 1.2, and its clip with one fused kernel left out at a time; profiles it.

The clip is that of `python -m pipeline bench --rows open_sora`, which has the table of whole clips. Every variant runs in
this process; medians over --repeat clips after one warm-up clip. Lines go to DIR/lines.jsonl as they come. A variant that
fails says so in its line, and one that --seconds leaves no time for says that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from benchmarks import kernels_gpu, products_gpu
from jobs.bench.measure import OurClips, measure
from jobs.bench.subjects import FULL, MAKERS, TINY, Subject
from pab.execution.choice import Execution
from pab.execution.compiled import compile_blocks, executing
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.family import ClipRequest
from pab.kernels.choice import MEASURED_FASTER, PLAIN
from pab.parallel.mesh import NodeGroup

KERNELS = {
    "plain": PLAIN,
    "fused": MEASURED_FASTER,
    "nonorm": replace(MEASURED_FASTER, norm=False),
    "nogelu": replace(MEASURED_FASTER, gelu=False),
    "notemporal": replace(MEASURED_FASTER, temporal=False),
    "noheadnorm": replace(MEASURED_FASTER, head_norm=False),
    "nocross": replace(MEASURED_FASTER, cross=False),
    "noflash3": replace(MEASURED_FASTER, flash3=False),
    "apart": replace(MEASURED_FASTER, gated=False, summed=False, gelu8=False),
    "nosummed": replace(MEASURED_FASTER, summed=False),
    "nogelu8": replace(MEASURED_FASTER, gelu8=False),
}
"""Of a variant's third word: none, what is used, that without some (`apart`: without all that is inside of products)."""


class Lines:
    """Writes each line of results as soon as it is known."""

    def __init__(self, folder: Path, seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.ends = folder / "lines.jsonl", time.monotonic() + seconds
        self.file.write_text("")

    def add(self, line: dict[str, object]) -> None:
        """Prints a line and appends it to the file."""
        text = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
        print(text, flush=True)  # noqa: T201
        with self.file.open("a") as file:
            file.write(text + "\n")

    def attempt(self, name: str, run: Callable[[], dict[str, object]]) -> None:
        """Adds what a measurement returns, or why it returned nothing."""
        left = self.ends - time.monotonic()
        if left < 0:
            self.add({"name": name, "skipped": "no time left"})
            return
        try:
            self.add({"name": name, **run()})
        except Exception as error:  # one variant that fails must not lose the others
            self.add({"name": name, "failed": f"{type(error).__name__}: {error}"[:1500]})
            empty_cache()


def empty_cache() -> None:
    """Lets go of cached memory. After a fault of the device even that fails, and says so once more: nothing to add."""
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


def check_kernels(lines: Lines, *, tiles: bool, only: str) -> None:
    """Adds the lines of the fused operations whose names hold one of the texts in `only`."""
    for operation in chain(products_gpu.operations(tiles=tiles), kernels_gpu.operations(tiles=tiles)):
        if not any(text in operation.name for text in only.split(",")):
            continue
        try:
            for line in kernels_gpu.measure(operation):
                lines.add(line)
        except Exception as error:  # as above
            lines.add({"operation": operation.name, "failed": f"{type(error).__name__}: {error}"[:1500]})
        empty_cache()


@dataclass(slots=True)
class Bench:
    """The model and the clips of one process, and the latents to compare with."""

    subject: Subject
    transformer: STDiT3
    group: NodeGroup
    repeat: int
    latents: dict[str, torch.Tensor] = field(default_factory=dict)
    compiled: bool = False
    float8: bool = False
    kernels: str = ""

    def run(self, variant: str, request: ClipRequest) -> dict[str, object]:
        """Measures `eager|compiled PRESET KERNELS [int8] [float8]`.

        Eager variants come first, and those of 8-bit products last: compiled blocks stay so, full weights do not come back.
        """
        mode, preset, kernels, *others = variant.split()
        if mode == "eager" and self.compiled:
            raise ValueError(f"{variant}: eager variants come before compiled ones")
        if self.float8 and "float8" not in others:
            raise ValueError(f"{variant}: variants with float8 come last")
        if "float8" in others and not self.float8:
            torch._dynamo.reset()
            self.transformer.use_float8()
            self.float8 = True
        if mode == "compiled" and not self.compiled:
            compile_blocks(self.subject.model.block_stacks)
            self.compiled = True
        if self.kernels != kernels:
            torch._dynamo.reset()  # every call of a block would look through the graphs of all variants
            self.kernels = kernels
        self.transformer.choose_kernels = lambda **_: KERNELS[kernels]
        clips = OurClips(
            subject=self.subject, broadcast=preset, group=self.group, keep="int8" if "int8" in others else "full"
        )
        # Eager clips need no warm-up worth the time.
        warm_up = request if mode == "compiled" else replace(request, num_steps=2)
        measured = measure(clips.clip, (request,), warm_up=warm_up, repeat=self.repeat)
        latents = measured.pictures[0]
        first = self.latents.setdefault(f"{request.height} {preset}", latents)
        row = dict(measured.line)
        if first is not latents:
            difference = (latents - first).abs()
            row |= {
                "rms_difference_to_first": difference.square().mean().sqrt().item(),
                "max_difference_to_first": difference.max().item(),
                "rms_of_first": first.square().mean().sqrt().item(),
            }
        return row

    def profile(self, request: ClipRequest, file: Path) -> dict[str, object]:
        """Writes the kernels of one short clip without reuse, by device time. Returns how much of the loop they fill."""
        clips = OurClips(subject=self.subject, broadcast="none", group=self.group)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            result = clips.denoise(request)
        averages = prof.key_averages()
        file.write_text(averages.table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=120))
        kernels_s = sum(event.self_device_time_total for event in averages) / 1e6
        return {"profile": file.name, "loop_s": sum(result.step_seconds), "kernels_s": kernels_s}


VARIANTS = (
    "eager none plain,compiled none fused,compiled pab246 fused,compiled pab579 fused,"
    "compiled none plain,compiled none nonorm,compiled none nogelu,compiled none notemporal,"
    "compiled none nocross"
)


def main() -> None:
    """Runs kernels and variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and clip, to try the script on a CPU")
    parser.add_argument(
        "--variants", default=VARIANTS, help="of: eager|compiled PRESET " + "|".join(KERNELS) + " [int8] [float8]"
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-kernels", action="store_true", help="leave out the lines of single operations")
    parser.add_argument(
        "--only", default="", metavar="TEXT,...", help="of single operations those whose names hold one of these"
    )
    parser.add_argument("--tiles", action="store_true", help="try every tile of every kernel")
    parser.add_argument("--small", action="store_true", help="144p clips of 17 frames as well")
    parser.add_argument("--seconds", type=float, default=3600, help="start no further variant after this long")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = Lines(options.out, options.seconds)
    subject = MAKERS["open_sora"](TINY if options.tiny else FULL, device)
    assert isinstance(subject.model, STDiT3Video), "the subject is Open-Sora"
    request = replace(subject.requests[0], num_steps=options.steps)
    with executing(Execution(compiled=True, attention="cudnn")), torch.inference_mode():
        if device.type == "cuda" and not options.no_kernels:
            check_kernels(lines, tiles=options.tiles, only=options.only)
        bench = Bench(
            subject=subject,
            transformer=subject.model.transformer,
            group=NodeGroup(device=device),
            repeat=options.repeat,
        )
        short = replace(request, num_steps=3)
        for number, variant in enumerate(options.variants.split(",")):
            lines.attempt(variant, partial(bench.run, variant, request))
            if options.profile and number == 1:
                lines.attempt(f"profile of {variant}", lambda: bench.profile(short, options.out / "profile.txt"))
        if options.small:
            small = replace(request, num_frames=17, height=144, width=256)
            lines.attempt("144p compiled none fused", lambda: bench.run("compiled none fused", small))
            lines.attempt("144p compiled pab246 fused", lambda: bench.run("compiled pab246 fused", small))


if __name__ == "__main__":
    main()
