"""Whole denoising runs of a tiny STDiT3: text, scheduler, guidance, broadcast plan, frame conditioning."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.state import Visit
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.family import ClipRequest
from pab.model import EncodedPrompt, Scheduler, StepInput
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.sampling.denoise import Denoised, denoise
from pab.sampling.rectified_flow import RectifiedFlow, round_to
from pab.text.states import TextStates
from tests.golden.cases import Case, close, same
from tests.golden.rectified_flow import FlowClip, clips_of
from tests.golden.reference_loop import FixedCodec, Plans, check_answers, plans_of, rows_of_steps
from tests.golden.stdit3 import load_model

LOOP_BOUND = 5e-5
BFLOAT16_BOUND = 0.3


@dataclass
class RecordedModel:
    """A `VideoModel` made of a reference case: its text, its scheduler, and the inputs of every step."""

    video: STDiT3Video
    flow: RectifiedFlow
    asked: list[Tensor] = field(default_factory=list)
    answered: list[Tensor] = field(default_factory=list)

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> Scheduler:
        return self.flow

    def split(self, latents: Tensor, sp: SequenceParallel) -> Tensor:
        return self.video.split(latents, sp)

    def gather(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        return self.video.gather(latents, request, sp)

    def predict(self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        self.asked.append(latents)
        self.answered.append(self.video.predict(latents, step_input, text, visit, group))
        return self.answered[-1]


@dataclass(frozen=True)
class Loop:
    """One clip of a case, ready to run."""

    model: RecordedModel
    request: ClipRequest
    prompt: EncodedPrompt
    noise: Tensor
    clip: FlowClip


def make_loop(case: Case, clip: FlowClip, transformer: STDiT3, precision: str, levels: Sequence[float]) -> Loop:
    given, args, row = case.inputs, case.args, slice(clip.index, clip.index + 1)
    dtype = transformer.final_layer.linear.weight.dtype
    fps = float(args.get("fps", 120.0 if clip.num_frames == 1 else 24.0))
    text = TextStates(
        y_BLC=given["y"][row].squeeze(1).to(dtype), mask_BL=_of_clip(given["text_mask"], clip), warnings=((),)
    )
    video = STDiT3Video(
        transformer=transformer,
        encode_text=lambda _: text,
        codec=FixedCodec(tuple(given["z0"].shape[1:])),
        timesteps=lambda _: tuple(levels),
        model_fps=lambda _: fps,
    )
    request = ClipRequest(
        prompt="-", negative_prompt=None, seed=0, num_frames=int(clip.num_frames), num_steps=clip.num_steps,
        height=int(round_to(precision, clip.height)), width=int(round_to(precision, clip.width)), fps=24,
        guidance_scale=args["cfg"],
    )  # fmt: skip
    model = RecordedModel(video, clip.flow(levels))
    return Loop(model, request, video.encode_prompts([request])[0], given["z0"][row], clip)


def _of_clip(mask_nL: Tensor, clip: FlowClip) -> Tensor:
    """Returns the text mask of one clip; a case may state one mask for all clips."""
    return mask_nL[clip.index : clip.index + 1] if len(mask_nL) == clip.count else mask_nL


def run(loop: Loop, plan: BroadcastPlan, group: NodeGroup | None = None) -> Denoised:
    return denoise(
        loop.model, loop.request, prompt=loop.prompt, noise=loop.noise, plan=plan, group=group or NodeGroup()
    )


def levels_of(case: Case, clip: FlowClip) -> list[float]:
    """Returns the stated levels of one clip; a case may state one list for all clips."""
    stated = case.tensors["timesteps"].float()
    levels = stated[:, clip.index] if stated.dim() == 2 else stated
    return levels.tolist()


def check(case: Case) -> None:
    """Checks every clip of the case, each with its own size, text, mask and noise."""
    precision = case.facts.get("compute_dtype", "float32")
    same(case.args.get("dtype", precision), precision, "args.dtype and compute_dtype")
    transformer = load_model(case)
    if precision == "bfloat16":
        transformer = STDiT3(transformer.config).eval()
        transformer.load_state_dict(case.weights(), strict=True)
        transformer = transformer.to(torch.bfloat16)
    for clip in clips_of(case, precision):
        stated = levels_of(case, clip)
        if "ntext" in case.args and clip.count == 1:
            same(int(case.inputs["text_mask"].sum()), case.args["ntext"], "tokens of the text")
        seen = [round_to(precision, level) for level in stated]
        plans = plans_of(case, seen, stdit3_sites(transformer.config.depth), transformer.config.depth)
        loop = make_loop(case, clip, transformer, precision, stated)
        if precision == "bfloat16":
            check_bfloat16(case, loop, plans)
        else:
            check_numbers(case, loop, plans)


def check_numbers(case: Case, loop: Loop, plans: Plans) -> None:
    clip, where = loop.clip, f"clip {loop.clip.index}"
    shown = rows_of_steps(case, "latents_before_", clip.count, clip.index)
    assert plans.reference is not None, "its counters end with the clip"
    result = run(loop, plans.reference)
    same(len(loop.model.asked), len(shown), f"{where}: steps")
    for step, latents in enumerate(shown):
        close(loop.model.asked[step][0], latents, LOOP_BOUND, f"{where}: latents before step {step}")
    channels = loop.noise.shape[1]
    check_answers(
        case, loop.model.answered, clip.rows, lambda ours, theirs, what: close(ours, theirs[:, :channels], 5e-5, what)
    )
    close(loop.model.answered[0], _first_output(case, clip)[:, :channels], 1e-5, f"{where}: first model output")
    close(result.latents, case.tensors["out"][clip.index : clip.index + 1], LOOP_BOUND, f"{where}: final latents")


def _first_output(case: Case, clip: FlowClip) -> Tensor:
    (name,) = [name for name in case.tensors if name.startswith("model_output_first_")]
    return case.tensors[name][clip.rows]


def check_bfloat16(case: Case, loop: Loop, plans: Plans) -> None:
    """Checks decisions and noise levels exactly, bfloat16 latents as loosely as two public implementations agree."""
    assert plans.reference is not None, "its counters end with the clip"
    result, clip = run(loop, plans.reference), loop.clip
    for name in case.tensors:
        if name.startswith(("latents_before_", "model_output_")):
            assert case.tensors[name].float().isfinite().all(), f"{name}: not finite"
    expected = case.tensors["out"][clip.index : clip.index + 1].float()
    close(result.latents, expected, BFLOAT16_BOUND, "final latents in bfloat16")
