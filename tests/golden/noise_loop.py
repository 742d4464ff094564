"""Whole denoising runs of tiny Latte and Open-Sora-Plan models: sampler, guidance, broadcast plan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.sites import Site
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
from tests.golden.cases import Case, close, same, same_levels
from tests.golden.reference_loop import FixedCodec, Plans, check_answers, plans_of, rows_of_steps

LOOP_BOUND = 1e-5
"""Allowed difference, as a share of the largest compared value."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What differs between families. `negative_cut_by_prompt`: the pipeline cuts both texts to the prompt's length."""

    load: Callable[[Case], Any]
    sites: Callable[[int], tuple[Site, ...]]
    sampler: Callable[[ClipRequest, Any], Scheduler]
    negative_cut_by_prompt: bool


LATTE = Pipeline(
    load=latte.load_model,
    sites=latte_sites,
    sampler=lambda request, _: DDIM(num_steps=request.num_steps),
    negative_cut_by_prompt=True,
)
OSP110 = Pipeline(
    load=latte.load_model,
    sites=latte_sites,
    sampler=lambda request, _: PNDM(num_steps=request.num_steps),
    negative_cut_by_prompt=True,
)
OSP120 = Pipeline(
    load=open_sora_plan.load_model,
    sites=open_sora_plan_sites,
    sampler=lambda request, noise: EulerAncestral(num_steps=request.num_steps, noise=noise),
    negative_cut_by_prompt=False,
)


@dataclass
class RecordedModel:
    """A `VideoModel` that remembers the inputs and the output of every call."""

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


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One clip of a case, ready to run."""

    model: RecordedModel
    request: ClipRequest
    latents: Tensor
    index: int
    count: int

    def run(self, plan: BroadcastPlan, group: NodeGroup | None = None) -> Denoised:
        """Runs the clip after clearing what an earlier run remembered."""
        self.model.asked.clear()
        self.model.answered.clear()
        (prompt,) = self.model.encode_prompts([self.request])
        return denoise(
            self.model, self.request, prompt=prompt, noise=self.latents, plan=plan, group=group or NodeGroup()
        )

    @property
    def rows(self) -> list[int]:
        """The clip's rows in the reference's batch, in our order. The reference puts all rows without a prompt first."""
        return [self.count + self.index, self.index]


def texts_of(case: Case, clip: slice):
    """Returns a function from the prompts "positive" and "negative" to one clip's text states."""
    given = case.inputs

    def states(prompts) -> TextStates:
        names = [{"positive": "prompt", "negative": "negative_prompt"}[prompt] for prompt in prompts]
        y = [given[f"{name}_embeds"][clip] for name in names]
        mask = [given[f"{n}_mask"][clip] if f"{n}_mask" in given else torch.ones(1, y[0].shape[1]) for n in names]
        return TextStates(y_BLC=torch.cat(y), mask_BL=torch.cat(mask), warnings=((),) * len(names))

    return states


def loops_of(case: Case, pipeline: Pipeline) -> list[Loop]:
    """Returns every clip of the case, each with its own text, latents and noise."""
    given, args = case.inputs, case.args
    count, _, *size = given["z0"].shape
    same(size, [args["F"], args["H"], args["Wd"]], "size of the latents")
    same(given["prompt_embeds"].shape[1], args["L"], "tokens of the text")
    if "nt" in args:
        same(int(given["prompt_mask"][0].sum()), args["nt"], "tokens of the prompt")
    transformer, noise = pipeline.load(case), given.get("noise")
    loops = []
    for index in range(count):
        clip = slice(index, index + 1)
        video = NoiseVideo(
            transformer=transformer,
            encode_text=texts_of(case, clip),
            codec=FixedCodec(tuple(given["z0"].shape[1:])),
            sampler=pipeline.sampler,
            device=torch.device("cpu"),
            negative_cut_by_prompt=pipeline.negative_cut_by_prompt,
        )
        model = RecordedModel(video, None if noise is None else noise[:, clip])
        loops.append(Loop(model=model, request=request_of(case), latents=given["z0"][clip], index=index, count=count))
    return loops


def request_of(case: Case) -> ClipRequest:
    args = case.args
    return ClipRequest(
        prompt="positive", negative_prompt="negative", seed=0, num_frames=args["F"], height=8 * args["H"],
        width=8 * args["Wd"], fps=8, num_steps=args["steps"], guidance_scale=args["cfg"],
    )  # fmt: skip


def check_latte(case: Case) -> None:
    check(case, LATTE)


def check_osp110(case: Case) -> None:
    check(case, OSP110)


def check_osp120(case: Case) -> None:
    check(case, OSP120)


def check(case: Case, pipeline: Pipeline) -> None:
    for loop in loops_of(case, pipeline):
        scheduler = loop.model.scheduler(loop.request, SequenceParallel())
        stated = case.tensors["timesteps"].tolist()
        same_levels(scheduler.timesteps, stated, "timesteps")
        if "init_noise_sigma" in case.tensors:
            same_levels([scheduler.init_noise_sigma], [case.tensors["init_noise_sigma"].item()], "init_noise_sigma")
        depth = loop.model.video.transformer.config.num_layers
        plans = plans_of(case, stated, pipeline.sites(depth), depth)
        if case.args.get("second"):
            check_second_is_first(loop, plans)
        check_numbers(case, loop, plans)


def check_second_is_first(loop: Loop, plans: Plans) -> None:
    """Checks that our second clip equals our first, bit for bit, although the reference's counters continue between clips."""
    first, second = loop.run(plans.ours), loop.run(plans.ours)
    assert torch.equal(first.latents, second.latents), "our second clip is another than our first"


def check_numbers(case: Case, loop: Loop, plans: Plans) -> None:
    """Checks that with the reference's decisions every number equals the reference's."""
    names = [name for name in case.tensors if name.startswith(("latents_before_", "model_input_before_"))]
    same(1, len(names), "records of what the model saw")
    asked = rows_of_steps(case, names[0], loop.count, loop.index)
    expected = case.tensors["out"][loop.index : loop.index + 1]
    if plans.reference is None:
        # it cannot be run, because it begins with outputs that the previous clip left
        for name in ("model_output_first_", "model_output_mid_"):
            rows_of_answers(case, name)
        return
    result = loop.run(plans.reference)
    same(len(loop.model.asked), len(asked), "calls of the model")
    for step, latents in enumerate(asked):
        close(loop.model.asked[step][0], latents, scaled(latents), f"model input of call {step}")
    check_answers(case, loop.model.answered, loop.rows, check_answer)
    close(result.latents, expected, scaled(expected), "final latents")


def rows_of_answers(case: Case, prefix: str) -> Tensor:
    (name,) = [name for name in case.tensors if name.startswith(prefix)]
    return case.tensors[name]


def check_answer(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Compares model outputs: ours has only the noise channels, theirs may have more."""
    close(ours, theirs[:, : ours.shape[1]], 5e-5, what)


def scaled(tensor: Tensor) -> float:
    return LOOP_BOUND * max(tensor.abs().max().item(), 1.0)
