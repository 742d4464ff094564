"""Times Open-Sora 1.2 at full size on one GPU: random weights, bf16, denoising only (480x848, 51 frames, 30 steps, scale 7).

Every variant runs in this process; medians over --repeat clips after one warm-up clip. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.denoise import Denoised, denoise, initial_noise
from pab.family import ClipRequest
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


def render(model: STDiT3Video, request: ClipRequest, rules: BroadcastRules, group: NodeGroup) -> Denoised:
    """Denoises one clip under a plan."""
    levels = [round_to("bfloat16", level) for level in model.timesteps(request)]
    return denoise(
        model,
        request,
        prompt=model.encode_prompts([request])[0],
        noise=initial_noise(request, model.latent_shape(request)),
        plan=make_plan(rules, levels, stdit3_sites(model.transformer.config.depth)),
        group=group,
    )


def measure(run: Callable[[], Denoised], repeat: int) -> dict[str, object]:
    """Returns seconds of the loop (device time between its first and last step), warm-up apart, and peak memory."""
    began = time.perf_counter()
    first = run()
    warm_up_s = time.perf_counter() - began
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    results = [run() for _ in range(repeat)]
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


def profile(run: Callable[[], Denoised], file: Path) -> None:
    """Writes the kernels of one short clip, by total device time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
        run()
    file.write_text(prof.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=110))


def main() -> None:
    """Runs the variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and clip, to try the script on a CPU")
    parser.add_argument("--variants", default="eager none,compiled none,compiled pab246,compiled pab579")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--cudnn", action="store_true", help="prefer cuDNN attention, which is faster at head size 72")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = STDiT3Config(depth=2, hidden_size=32, num_heads=2) if options.tiny else STDiT3Config()
    size = (64, 96, 17) if options.tiny else (480, 848, 51)
    model = make_model(device, config, text_tokens=120)
    request = ClipRequest(
        prompt="-", negative_prompt=None, seed=1, num_frames=size[2], height=size[0], width=size[1], fps=24,
        num_steps=options.steps, guidance_scale=7.0,
    )  # fmt: skip
    group = NodeGroup(device=device)
    rows, latents = [], {}
    compiled = False
    order = [SDPBackend.CUDNN_ATTENTION] if options.cudnn else []
    order += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with many_graphs(), torch.inference_mode(), sdpa_kernel(order, set_priority=True):
        for variant in options.variants.split(","):
            mode, preset = variant.split()
            if mode == "compiled" and not compiled:
                compile_blocks([model.transformer.spatial_blocks, model.transformer.temporal_blocks])
                compiled = True
            row = measure(lambda preset=preset: render(model, request, RULES[preset], group), options.repeat)
            latents[variant] = row.pop("latents")
            reference = latents.get(f"eager {preset}")
            if reference is not None and mode != "eager":
                row["max_abs_difference_to_eager"] = (latents[variant] - reference).abs().max().item()
                row["latent_abs_max"] = reference.abs().max().item()
            rows.append({"variant": variant, "graphs": graphs_compiled(), **row})
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201
            (options.out / "open_sora_gpu.json").write_text(json.dumps(rows, indent=1))
        if options.profile:
            short = ClipRequest(**{**{f: getattr(request, f) for f in request.__dataclass_fields__}, "num_steps": 4})
            profile(lambda: render(model, short, NO_BROADCAST, group), options.out / "profile.txt")


if __name__ == "__main__":
    main()
