"""Times Open-Sora 1.2 at full size on one GPU: random weights, bf16, denoising only (480x848, 51 frames, 30 steps, scale 7).

Every variant runs in this process; medians over --repeat clips after one warm-up clip. Lines go to DIR/lines.jsonl as they
come. A variant that fails says so in its line, and one that --seconds leaves no time for says that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks import kernels_gpu
from pab.compiled import compile_blocks, executing, graphs_compiled
from pab.denoise import Denoised, LoopSettings, denoise, initial_noise
from pab.execution import Execution
from pab.family import ClipRequest
from pab.kernels.choice import MEASURED_FASTER, PLAIN
from pab.models.stdit3 import STDiT3, STDiT3Config, stdit3_sites
from pab.models.stdit3_video import STDiT3Video, TextStates
from pab.parallel import NodeGroup
from pab.plan import NO_BROADCAST, BroadcastRules, MlpRule, make_plan, pyramid
from pab.rectified_flow import round_to, size_shift, timesteps

MLP = tuple(
    MlpRule(stack=stack, blocks=(0, 1, 2, 3, 4), skip_count=2, position=step / 30)
    for stack in ("spatial", "temporal")
    for step in (13, 17, 21)
)
RULES = {
    "none": NO_BROADCAST,
    "pab246": pyramid(2, 4, 6, window=(450, 930), mlp=MLP),
    "pab357": pyramid(3, 5, 7, window=(450, 930), mlp=MLP),
    "pab579": pyramid(5, 7, 9, window=(450, 930), mlp=MLP),
}

KERNELS = {
    "plain": PLAIN,
    "fused": MEASURED_FASTER,
    "spatial": replace(MEASURED_FASTER, spatial=not MEASURED_FASTER.spatial),
    "nonorm": replace(MEASURED_FASTER, norm=False),
    "nogelu": replace(MEASURED_FASTER, gelu=False),
    "notemporal": replace(MEASURED_FASTER, temporal=False),
    "noheadnorm": replace(MEASURED_FASTER, head_norm=False),
    "nocross": replace(MEASURED_FASTER, cross=False),
}
"""Of a variant's third word; `spatial` is `fused` with the other way of spatial attention, the rest leave one out."""


class Latents480p:
    """Only knows the size of the latents."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W)."""
        return (4, num_frames // 17 * 5, height // 8, width // 8)

    def decode_frames(self, *_: object) -> torch.Tensor:
        """Is not timed here."""
        raise NotImplementedError


def make_model(device: torch.device, config: STDiT3Config, text_tokens: int) -> STDiT3Video:
    """Returns a model with random weights, in place of a checkpoint, and one prompt of `text_tokens` tokens."""
    torch.manual_seed(0)
    with device:
        transformer = STDiT3(config)
    for parameter in transformer.parameters():
        if parameter.dim() > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    transformer = transformer.to(torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(1, config.model_max_length, config.caption_channels, generator=generator).to(device, torch.bfloat16)
    mask = (torch.arange(config.model_max_length) < text_tokens).long()[None].to(device)
    shift = size_shift(height=480, width=848, num_frames=51, precision="bfloat16")
    return STDiT3Video(
        transformer=transformer,
        encode_text=lambda prompts: TextStates(y_BLC=y, mask_BL=mask, warnings=((),) * len(prompts)),
        codec=Latents480p(),
        timesteps=lambda request: timesteps(request.num_steps, shift=shift),
        model_fps=lambda _: 24.0,
    )


def render(
    model: STDiT3Video, request: ClipRequest, rules: BroadcastRules, group: NodeGroup, keep: str = "full"
) -> Denoised:
    """Denoises one clip under a plan."""
    levels = [round_to("bfloat16", level) for level in model.timesteps(request)]
    return denoise(
        model,
        request,
        prompt=model.encode_prompts([request])[0],
        noise=initial_noise(request, model.latent_shape(request)),
        plan=make_plan(rules, levels, stdit3_sites(model.transformer.config.depth)),
        group=group,
        loop=LoopSettings(keep=keep),
    )


def measure(run: Callable[[], Denoised], repeat: int) -> dict[str, object]:
    """Returns seconds of the loop (device time between its first and last step), warm-up apart, and peak memory.

    With a `repeat` of 0 the warm-up clip is the result.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    first = run()
    warm_up_s = time.perf_counter() - began
    if torch.cuda.is_available() and repeat:
        torch.cuda.reset_peak_memory_stats()
    results = [run() for _ in range(repeat)] or [first]
    seconds = [sum(result.step_seconds) for result in results]
    by_pattern: dict[str, list[float]] = {}
    for pattern, step_s in zip(results[-1].plan.patterns, results[-1].step_seconds, strict=True):
        by_pattern.setdefault(pattern, []).append(step_s * 1e3)
    return {
        "seconds": statistics.median(seconds),
        "spread": max(seconds) - min(seconds),
        "warm_up_s": warm_up_s,
        "step_ms": {pattern: round(statistics.median(values), 1) for pattern, values in by_pattern.items()},
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        "kept_gb": first.kept_bytes_peak / 1e9,
        "latents": results[-1].latents,
    }


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
    for operation in kernels_gpu.operations(tiles=tiles):
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

    model: STDiT3Video
    group: NodeGroup
    repeat: int
    latents: dict[str, torch.Tensor] = field(default_factory=dict)
    compiled: bool = False

    def run(self, variant: str, request: ClipRequest) -> dict[str, object]:
        """Measures `eager|compiled PRESET KERNELS [int8]`. Eager variants come first: compiled blocks stay so."""
        mode, preset, kernels, *others = variant.split()
        keep = others[0] if others else "full"
        if mode == "eager" and self.compiled:
            raise ValueError(f"{variant}: eager variants come before compiled ones")
        if mode == "compiled" and not self.compiled:
            compile_blocks(self.model.block_stacks)
            self.compiled = True
        self.model.transformer.choose_kernels = lambda **_: KERNELS[kernels]
        # Eager clips need no warm-up worth the time: the first is the result.
        repeat = self.repeat if mode == "compiled" else 0
        row = measure(lambda: render(self.model, request, RULES[preset], self.group, keep), repeat)
        latents = row.pop("latents")
        assert isinstance(latents, torch.Tensor), "the loop returns latents"
        first = self.latents.setdefault(f"{request.height} {preset}", latents)
        if first is not latents:
            difference = (latents - first).abs()
            row |= {
                "rms_difference_to_first": difference.square().mean().sqrt().item(),
                "max_difference_to_first": difference.max().item(),
                "rms_of_first": first.square().mean().sqrt().item(),
            }
        return {"graphs": graphs_compiled(), **row}

    def profile(self, request: ClipRequest, file: Path) -> dict[str, object]:
        """Writes the kernels of one short clip without reuse, by device time. Returns how much of the loop they fill."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            result = render(self.model, request, NO_BROADCAST, self.group)
        averages = prof.key_averages()
        file.write_text(averages.table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=120))
        kernels_s = sum(event.self_device_time_total for event in averages) / 1e6
        return {"profile": file.name, "loop_s": sum(result.step_seconds), "kernels_s": kernels_s}


VARIANTS = (
    "eager none plain,compiled none fused,compiled pab246 fused,compiled none spatial,compiled pab579 fused,"
    "compiled none plain,compiled pab246 spatial,compiled none nonorm,compiled none nogelu,compiled none notemporal,"
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
        "--variants", default=VARIANTS, help="of: eager|compiled PRESET " + "|".join(KERNELS) + " [int8]"
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
    config = STDiT3Config(depth=2, hidden_size=32, num_heads=2) if options.tiny else STDiT3Config()
    size = (64, 96, 17) if options.tiny else (480, 848, 51)
    lines = Lines(options.out, options.seconds)
    request = ClipRequest(
        prompt="-", negative_prompt=None, seed=1, num_frames=size[2], height=size[0], width=size[1], fps=24,
        num_steps=options.steps, guidance_scale=7.0,
    )  # fmt: skip
    with executing(Execution(compiled=True, attention="cudnn")), torch.inference_mode():
        if device.type == "cuda" and not options.no_kernels:
            check_kernels(lines, tiles=options.tiles, only=options.only)
        model = make_model(device, config, text_tokens=120)
        bench = Bench(model=model, group=NodeGroup(device=device), repeat=options.repeat)
        short = replace(request, num_steps=3)
        for number, variant in enumerate(options.variants.split(",")):
            lines.attempt(variant, lambda variant=variant: bench.run(variant, request))
            if options.profile and number == 1:
                lines.attempt(f"profile of {variant}", lambda: bench.profile(short, options.out / "profile.txt"))
        if options.small:
            small = replace(request, num_frames=17, height=144, width=256)
            lines.attempt("144p compiled none fused", lambda: bench.run("compiled none fused", small))
            lines.attempt("144p compiled pab246 fused", lambda: bench.run("compiled pab246 fused", small))


if __name__ == "__main__":
    main()
