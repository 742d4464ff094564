"""Open-Sora's scheduler: noise levels, the sampling loop with given model outputs, the training loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pab.sampling import rectified_flow as rf
from tests.golden.cases import Case, close, only, same, same_levels

LOOP_BOUND = 1e-5
ROW = frozenset({
    "height", "width", "num_frames", "steps", "model_args_dtype", "use_timestep_transform", "use_discrete_timesteps",
    "height_as_seen", "width_as_seen", "fps_arg", "timesteps", "timesteps_dtype", "dt", "timesteps_as_model_sees",
    "all_timesteps_int",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FlowClip:
    """One clip of a loop case: its size in pixels and pixel frames, its noise levels, and its given frames."""

    index: int
    count: int
    height: float
    width: float
    num_frames: float
    num_steps: int
    precision: str
    transform: bool
    discrete: bool
    frame_mask_1T: Tensor | None
    noise: Tensor | None

    @property
    def levels(self) -> tuple[float, ...]:
        shift = 1.0
        if self.transform:
            shift = rf.size_shift(
                height=self.height, width=self.width, num_frames=self.num_frames, precision=self.precision
            )
        return rf.timesteps(self.num_steps, shift=shift, discrete=self.discrete)

    @property
    def rows(self) -> list[int]:
        """The clip's rows in a batch of all clips: first the rows with prompts, then the rows without."""
        return [self.index, self.count + self.index]

    def flow(self, stated: Sequence[float]) -> rf.RectifiedFlow:
        """Returns the clip's scheduler over the stated levels, which differ from ours only in rounding.

        The rounding decides whether a frame is generated at a step: a first level just above 1000 leaves all frames out.
        """
        same_levels(self.levels, stated, f"clip {self.index}")
        noise = self.noise
        return rf.RectifiedFlow(
            timesteps=tuple(stated),
            frame_mask_BT=self.frame_mask_1T,
            noise=None if noise is None else lambda step: noise[step],
        )


def clips_of(case: Case, precision: str = "float32") -> list[FlowClip]:
    """Returns every clip of a loop case, with its own settings if the case states them per clip."""
    given, args = case.inputs, case.args
    count, _, *size = given["z0"].shape
    same(size, [args[name] for name in ("T", "H", "Wd" if "Wd" in args else "W")], "size of the latents")
    if "C" in args:
        same(given["z0"].shape[1], args["C"], "channels")
    sizes = _sizes(case, count)
    mask, noise = given.get("mask"), given.get("noise")
    if "mask" in args:
        assert mask is not None, "args.mask, and no in.mask"
        close(mask.double(), torch.tensor(args["mask"], dtype=torch.float64).reshape(mask.shape), 1e-7, "mask")
    return [
        FlowClip(
            index=index, count=count, height=height, width=width, num_frames=num_frames, num_steps=args["steps"],
            precision=precision, transform=flag(case, "transform", "use_timestep_transform", default=True),
            discrete=flag(case, "discrete", "use_discrete_timesteps", default=False),
            frame_mask_1T=None if mask is None else mask[index : index + 1].float(),
            noise=None if noise is None else noise[:, index : index + 1],
        )
        for index, (height, width, num_frames) in enumerate(sizes)
    ]  # fmt: skip


def flag(case: Case, *names: str, default: bool) -> bool:
    """Reads a switch that a case may state under several names, inside or outside of its arguments. They must agree."""
    stated = {bool(values[name]) for values in (case.args, case.facts) for name in names if name in values}
    assert len(stated) < 2, f"{' and '.join(names)} contradict each other"
    return stated.pop() if stated else default


def _sizes(case: Case, count: int) -> list[tuple[float, float, float]]:
    """Returns height, width and frames of every clip, stated once or per clip, possibly also as inputs of the model."""
    given, args = case.inputs, case.args
    if "hw" in args:
        same(args["n"], count, "number of clips")
        frames = args["nf"]
        sizes = [
            (float(h), float(w), float(frames[i] if isinstance(frames, list) else frames))
            for i, (h, w) in enumerate(args["hw"])
        ]
    else:
        sizes = [tuple(float(v) for v in _each(args[name], count)) for name in ("h", "w", "n")]
        sizes = list(zip(*sizes, strict=True))
    same(len(sizes), count, "number of sizes")
    for axis, name in enumerate(("height", "width", "num_frames")):
        if name in given:
            stated = given[name].float().expand(count).tolist()
            same([size[axis] for size in sizes], stated, f"in.{name}")
    return sizes


def _each(value: Any, count: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * count


def check_tables(case: Case) -> None:
    for index, row in enumerate(case.facts["rows"]):
        only(row, ROW, f"row {index}")
        check_timesteps(row, f"row {index}")


def check_timesteps(row: Mapping[str, Any], where: str) -> None:
    """Checks noise levels; what the model gets and the step sizes must follow from the stated levels bit for bit."""
    precision = row["model_args_dtype"]
    shift = 1.0
    if row["use_timestep_transform"]:
        shift = rf.size_shift(
            height=row["height"], width=row["width"], num_frames=row["num_frames"], precision=precision
        )
    same(rf.round_to(precision, row["height"]), row["height_as_seen"], f"{where}: height as seen")
    same(rf.round_to(precision, row["width"]), row["width_as_seen"], f"{where}: width as seen")
    same(120.0 if row["num_frames"] == 1 else 24.0, row["fps_arg"], f"{where}: frame rate")
    levels = rf.timesteps(row["steps"], shift=shift, discrete=row["use_discrete_timesteps"])
    stated = row["timesteps"]
    same_levels(levels, stated, where)
    # whole levels stay whole numbers if no shift changes them
    whole = row["use_discrete_timesteps"] and not row["use_timestep_transform"]
    same(row["timesteps_dtype"], "int64" if whole else "float32", f"{where}: kind of numbers")
    seen = [rf.round_to(precision, level) for level in stated]
    same(seen, row["timesteps_as_model_sees"], f"{where}: levels as seen")
    same([int(level) for level in seen], row["all_timesteps_int"], f"{where}: whole levels as seen")
    flow = rf.RectifiedFlow(timesteps=tuple(float(level) for level in stated))
    sizes = [flow.step_size(step) for step in range(len(levels))]
    assert sizes == pytest.approx(row["dt"], abs=1e-7), f"{where}: step sizes"


def check_training_loss(case: Case) -> None:
    given, args = case.inputs, case.args
    data, noise = given["x_start"], given["noise"]
    same(list(data.shape[1:]), [args[name] for name in ("C", "T", "H", "W")], "size of the latents")
    x_t = rf.add_noise(data, noise, given["t"][:, None, None, None, None])
    close(x_t, case.tensors["x_t"], 1e-6, "x_t")
    mask = given.get("mask")
    if "mask" in args:
        assert mask is not None, "args.mask, and no in.mask"
        same(mask.long().tolist(), [[int(v) for v in row] for row in args["mask"]], "mask")
    if mask is not None:
        x_t = x_t.where(mask[:, None, :, None, None], data)
    close(x_t, case.tensors["x_given_to_model"], 1e-6, "x_given_to_model")
    velocity = given["model_output"][:, : data.shape[1]]
    close(rf.training_loss(velocity, data, noise, mask), case.tensors["loss"], 1e-5, "loss")


def check_loop(case: Case) -> None:
    dtype = case.args.get("dtype", "float32")
    for clip in clips_of(case, dtype):
        check_clip(case, clip)


def check_clip(case: Case, clip: FlowClip) -> None:
    given, expected, where = case.inputs, case.tensors, f"clip {clip.index}"
    channels = given["z0"].shape[1]
    latents = given["z0"][clip.index : clip.index + 1]
    levels = expected["timesteps_given_to_model"][:, clip.rows].float()
    assert torch.equal(levels[:, 0], levels[:, 1]), f"{where}: levels with and without prompt"
    flow = clip.flow(levels[:, 0].tolist())
    shown = expected["z_given_to_model"]
    # for a single clip the reference's file has no dim for clips
    shown = shown[:, clip.index] if shown.dim() == 6 else shown
    same(len(given["model_outputs"]), len(flow.timesteps), f"{where}: steps")
    for step, outputs in enumerate(given["model_outputs"]):
        model_input = flow.model_input(latents, step)
        close(model_input[0], shown[step], LOOP_BOUND, f"{where}: z at step {step}")
        if flow.frame_mask_BT is not None:
            active = flow.active_frames(step)
            assert active is not None
            stated = expected["x_mask_given_to_model"][step, clip.rows]
            assert torch.equal(active.repeat(2, 1), stated), f"{where}: frames that are generated at step {step}"
        cond, uncond = (outputs[row : row + 1, :channels] for row in clip.rows)
        velocity = uncond + case.args["cfg"] * (cond - uncond)
        latents = flow.advance(latents, model_input, velocity, step)
    close(latents, expected["out"][clip.index : clip.index + 1], LOOP_BOUND, f"{where}: final latents")
