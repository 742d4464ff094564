"""Open-Sora's scheduler: noise levels, the sampling loop with prescribed model outputs, the training loss."""

import pytest
import torch

from pab.sampling import rectified_flow as rf
from tests.golden.cases import Case, close

LOOP_BOUND = 1e-5


def check(case: Case) -> None:
    stem = case.path.stem
    if stem == "timesteps":
        for row in case.facts["rows"]:
            check_timesteps(row)
    elif stem.startswith("training_loss"):
        check_training_loss(case)
    elif stem.startswith("loop"):
        check_loop(case)
    else:
        pytest.fail(f"{case.name}: not a kind of rectified-flow case that is known")


def check_timesteps(row: dict) -> None:
    """Noise levels, and what the model sees of them, are equal bit by bit."""
    precision = row["model_args_dtype"]
    shift = 1.0
    if row["use_timestep_transform"]:
        shift = rf.size_shift(
            height=row["height"], width=row["width"], num_frames=row["num_frames"], precision=precision
        )
    levels = rf.timesteps(row["steps"], shift=shift, discrete=row["use_discrete_timesteps"])
    assert list(levels) == row["timesteps"]
    seen = [rf.round_to(precision, level) for level in levels]
    assert seen == row["timesteps_as_model_sees"]
    assert [int(level) for level in seen] == row["all_timesteps_int"]
    flow = rf.RectifiedFlow(timesteps=levels)
    assert [flow.step_size(step) for step in range(len(levels))] == pytest.approx(row["dt"], abs=1e-7)


def check_training_loss(case: Case) -> None:
    given = case.inputs()
    data, noise = given["x_start"], given["noise"]
    x_t = rf.add_noise(data, noise, given["t"][:, None, None, None, None])
    close(x_t, case.tensors["x_t"], 1e-6, "x_t")
    mask = given.get("mask")
    if mask is not None:
        x_t = x_t.where(mask[:, None, :, None, None], data)
    close(x_t, case.tensors["x_given_to_model"], 1e-6, "x_given_to_model")
    velocity = given["model_output"][:, : data.shape[1]]
    close(rf.training_loss(velocity, data, noise, mask), case.tensors["loss"], 1e-5, "loss")


def flow_for(case: Case, index: int) -> rf.RectifiedFlow:
    """The scheduler of one clip of a loop case."""
    given, args = case.inputs(), case.facts["args"]
    if "height" in given:
        size = tuple(float(given[key][index]) for key in ("height", "width", "num_frames"))
    else:
        size = (args["h"], args["w"], args["n"])
    shift = 1.0
    if case.path.stem.find("no_transform") < 0:
        shift = rf.size_shift(height=size[0], width=size[1], num_frames=size[2], precision="float32")
    return rf.RectifiedFlow(
        timesteps=rf.timesteps(args["steps"], shift=shift),
        frame_mask_BT=given.get("mask"),
        noise=None if "noise" not in given else lambda step: given["noise"][step],
    )


def check_loop(case: Case) -> None:
    given, expected = case.inputs(), case.tensors
    count, channels = given["z0"].shape[:2]
    for i in range(count):
        flow = flow_for(case, i)
        latents = given["z0"][i : i + 1]
        for step, outputs in enumerate(given["model_outputs"]):
            model_input = flow.model_input(latents, step)
            shown = expected["z_given_to_model"][step]
            close(model_input[0], shown[i] if shown.dim() == 5 else shown, LOOP_BOUND, f"z at step {step}")
            assert torch.equal(
                expected["timesteps_given_to_model"][step, [i, count + i]], torch.full((2,), flow.timesteps[step])
            )
            if flow.frame_mask_BT is not None:
                active = flow.active_frames(step)
                assert torch.equal(active.repeat(2, 1), expected["x_mask_given_to_model"][step])
            cond, uncond = outputs[i : i + 1, :channels], outputs[count + i : count + i + 1, :channels]
            velocity = uncond + case.facts["args"]["cfg"] * (cond - uncond)
            latents = flow.advance(latents, model_input, velocity, step)
        close(latents, expected["out"][i : i + 1], LOOP_BOUND, "final latents")
