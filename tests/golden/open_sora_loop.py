"""Whole denoising runs of a tiny STDiT3: text, scheduler, guidance, broadcast plan, frame conditioning."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pab.broadcast.plan import make_plan
from pab.broadcast.state import Visit
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_video import STDiT3Video, TextStates
from pab.family import ClipRequest
from pab.model import EncodedPrompt, Scheduler, StepInput
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.sampling.denoise import Denoised, denoise
from pab.sampling.rectified_flow import RectifiedFlow, round_to, size_shift, timesteps
from tests.golden.broadcast_traces import check_decisions, rules_from_reference
from tests.golden.cases import Case, close
from tests.golden.stdit3 import load_model

LOOP_BOUND = 5e-5
BFLOAT16_BOUND = 0.3


@dataclass
class RecordedModel:
    """A `VideoModel` over a reference case: its text, its scheduler, and what it was asked step by step."""

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
    """One case made ready to run."""

    model: RecordedModel
    request: ClipRequest
    prompt: EncodedPrompt
    noise: Tensor
    plan: object


class FixedCodec:
    """Only knows the size of the latents."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.shape


def make_loop(case: Case, transformer: STDiT3, precision: str) -> Loop:
    given, args = case.inputs(), case.facts["args"]
    height, width = round_to(precision, args["h"]), round_to(precision, args["w"])
    shift = size_shift(height=args["h"], width=args["w"], num_frames=args["n"], precision=precision)
    levels = timesteps(args["steps"], shift=shift)
    dtype = transformer.final_layer.linear.weight.dtype
    video = STDiT3Video(
        transformer=transformer,
        encode_text=lambda _: TextStates(
            y_BLC=given["y"].squeeze(1).to(dtype), mask_BL=given["text_mask"], warnings=((),)
        ),
        codec=FixedCodec(tuple(given["z0"].shape[1:])),
        timesteps=lambda _: levels,
        model_fps=lambda request: 120.0 if request.num_frames == 1 else 24.0,
    )
    flow = RectifiedFlow(
        timesteps=levels,
        frame_mask_BT=given.get("mask"),
        noise=None if "noise" not in given else lambda step: given["noise"][step],
    )
    request = ClipRequest(
        prompt="-", negative_prompt=None, seed=0, num_frames=args["n"], height=int(height), width=int(width), fps=24,
        num_steps=args["steps"], guidance_scale=args["cfg"],
    )  # fmt: skip
    rules = rules_from_reference(case.facts["pab_config"])
    seen = [round_to(precision, level) for level in levels]
    plan = make_plan(rules, seen, stdit3_sites(transformer.config.depth))
    return Loop(RecordedModel(video, flow), request, video.encode_prompts([request])[0], given["z0"], plan)


def run(loop: Loop, group: NodeGroup | None = None) -> Denoised:
    return denoise(
        loop.model, loop.request, prompt=loop.prompt, noise=loop.noise, plan=loop.plan, group=group or NodeGroup()
    )


def check(case: Case) -> None:
    if case.facts.get("compute_dtype") == "bfloat16":
        check_bfloat16(case)
        return
    loop = make_loop(case, load_model(case), "float32")
    result = run(loop)
    expected = case.tensors
    assert list(loop.model.flow.timesteps) == expected["timesteps"].tolist()
    if case.facts["decisions"] is not None:
        check_decisions(result.plan, case.facts["decisions"])
    for step, latents in enumerate(expected["latents_before_step"]):
        close(loop.model.asked[step][0], latents, LOOP_BOUND, f"latents before step {step}")
    velocity = expected["model_output_first_step"][:, : loop.noise.shape[1]]
    close(loop.model.answered[0], velocity, 1e-5, "first model output")
    close(result.latents, expected["out"], LOOP_BOUND, "final latents")


def check_bfloat16(case: Case) -> None:
    """Decisions and noise levels are exact; bfloat16 latents agree as two public implementations do, loosely."""
    transformer = STDiT3(load_model(case).config).eval()
    transformer.load_state_dict(case.weights(), strict=True)
    loop = make_loop(case, transformer.to(torch.bfloat16), "bfloat16")
    result = run(loop)
    assert list(loop.model.flow.timesteps) == case.tensors["timesteps"].float().tolist()
    if case.facts["decisions"] is not None:
        check_decisions(result.plan, case.facts["decisions"])
    close(result.latents, case.tensors["out"].float(), BFLOAT16_BOUND, "final latents in bfloat16")
