"""Whole denoising runs of tiny Latte and Open-Sora-Plan models: sampler, guidance, broadcast plan."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.families.latte.sites import latte_sites
from pab.families.open_sora_plan.sites import open_sora_plan_sites
from pab.family import ClipRequest
from pab.model import Scheduler
from pab.nn.noise_video import NoiseVideo
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.sampling.denoise import Denoised, denoise
from pab.sampling.samplers import DDIM, PNDM, EulerAncestral
from pab.text.states import TextStates
from tests.golden import latte, open_sora_plan
from tests.golden.broadcast_traces import check_decisions, rules_from_reference
from tests.golden.cases import Case, close

LOOP_BOUND = 1e-5
"""Times the largest value of what is compared."""
SAMPLERS = {
    "e2e_latte": lambda request, _: DDIM(num_steps=request.num_steps),
    "e2e_osp110": lambda request, _: PNDM(num_steps=request.num_steps),
    "e2e_osp120": lambda request, noise: EulerAncestral(num_steps=request.num_steps, noise=noise),
}


@dataclass
class RecordedModel:
    """A `VideoModel` that remembers what it was asked and what it answered, call by call."""

    video: NoiseVideo
    noise: Tensor | None
    asked: list[Tensor] = field(default_factory=list)
    answered: list[Tensor] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.video, name)

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> Scheduler:
        return self.video.sampler(request, lambda step: self.noise[step])

    def predict(self, latents, step_input, text, visit, group):
        self.asked.append(latents)
        self.answered.append(self.video.predict(latents, step_input, text, visit, group))
        return self.answered[-1]


@dataclass(frozen=True)
class FixedCodec:
    """Only knows the size of the latents."""

    shape: tuple[int, ...]

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.shape


def texts_of(case: Case):
    """Text states by the prompts "positive" and "negative"."""
    given = case.inputs()

    def states(prompts) -> TextStates:
        names = [{"positive": "prompt", "negative": "negative_prompt"}[prompt] for prompt in prompts]
        y = [given[f"{name}_embeds"] for name in names]
        mask = [given.get(f"{name}_mask", torch.ones(1, y[0].shape[1])) for name in names]
        return TextStates(y_BLC=torch.cat(y), mask_BL=torch.cat(mask), warnings=((),) * len(names))

    return states


def make_video(case: Case) -> tuple[NoiseVideo, tuple]:
    folder = open_sora_plan if case.folder == "e2e_osp120" else latte
    transformer = folder.load_model(case)
    sites = open_sora_plan_sites if case.folder == "e2e_osp120" else latte_sites
    video = NoiseVideo(
        transformer=transformer,
        encode_text=texts_of(case),
        codec=FixedCodec(tuple(case.tensors["in.z0"].shape[1:])),
        sampler=SAMPLERS[case.folder],
        device=torch.device("cpu"),
        negative_cut_by_prompt=case.folder != "e2e_osp120",
    )
    return video, sites(transformer.config.num_layers)


def run(case: Case, model: RecordedModel, plan: BroadcastPlan, group: NodeGroup | None = None) -> Denoised:
    return denoise(
        model,
        request_of(case),
        prompt=model.encode_prompts([request_of(case)])[0],
        noise=case.tensors["in.z0"],
        plan=plan,
        group=group or NodeGroup(),
    )


def request_of(case: Case) -> ClipRequest:
    args = case.facts["args"]
    return ClipRequest(
        prompt="positive", negative_prompt="negative", seed=0, num_frames=args["F"], height=8 * args["H"],
        width=8 * args["Wd"], fps=8, num_steps=args["steps"], guidance_scale=args["cfg"],
    )  # fmt: skip


def check(case: Case) -> None:
    if case.facts["args"].get("second"):
        check_second_clip(case)
        return
    model, plan = make_model(case)
    result = run(case, model, plan)
    if case.facts["decisions"] is not None:
        check_decisions(plan, case.facts["decisions"])
    check_numbers(case, model, result)


def make_model(case: Case) -> tuple[RecordedModel, BroadcastPlan]:
    video, sites = make_video(case)
    model = RecordedModel(video, case.inputs().get("noise"))
    timesteps = model.scheduler(request_of(case), SequenceParallel()).timesteps
    return model, make_plan(rules_from_reference(case.facts["pab_config"]), timesteps, sites)


def check_numbers(case: Case, model: RecordedModel, result: Denoised) -> None:
    expected = case.tensors
    scheduler = model.scheduler(request_of(case), SequenceParallel())
    assert list(scheduler.timesteps) == expected["timesteps"].tolist()
    if "init_noise_sigma" in expected:
        assert scheduler.init_noise_sigma == expected["init_noise_sigma"].item()
    asked = next(value for key, value in expected.items() if key.startswith(("latents_before", "model_input_before")))
    assert len(model.asked) == len(asked)
    for step, latents in enumerate(asked):
        close(model.asked[step][0], latents, scaled(latents), f"model input of call {step}")
    unit = "call" if "model_output_first_call" in expected else "step"
    check_answer(model.answered[0], expected[f"model_output_first_{unit}"], "first model output")
    check_answer(model.answered[len(asked) // 2], expected[f"model_output_mid_{unit}"], "model output half-way")
    close(result.latents, expected["out"], scaled(expected["out"]), "final latents")


def check_answer(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Ours has the conditional rows first and only the noise; theirs the unconditional ones, and perhaps more channels."""
    close(ours, theirs.flip(0)[:, : ours.shape[1]], 5e-5, what)


def scaled(tensor: Tensor) -> float:
    return LOOP_BOUND * max(tensor.abs().max().item(), 1.0)


def check_second_clip(case: Case) -> None:
    """The reference's counters drift from one clip to the next; our second clip is the reference's first."""
    first = replace(case, path=case.path.with_name(case.path.name.replace("_second_generation", "")))
    assert case.facts["decisions"]["cross"] != first.facts["decisions"]["cross"], "the reference does drift"
    model, plan = make_model(case)
    run(case, model, plan)
    model.asked.clear()
    model.answered.clear()
    result = run(case, model, plan)
    check_decisions(plan, first.facts["decisions"])
    check_numbers(first, model, result)
