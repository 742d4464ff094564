"""How far ways of broadcasting move clips from themselves without reuse: PSNR and SSIM of whole renders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import torch
from torch import Tensor

from jobs.quality.alike import Frames, psnr, ssim
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.family import ClipRequest, Family
from pab.model import VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.batch import denoise_batch, noise_of
from pab.sampling.denoise import Denoised, denoise, initial_noise, plan_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Median, least and most over clips."""

    median: float
    least: float
    most: float


def summary(values: Sequence[float]) -> Summary:
    """Returns median, least and most of some values."""
    return Summary(median=median(values), least=min(values), most=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuality:
    """One way of broadcasting, judged on clips. PSNR in dB, infinite for equal frames; `graphs`: of compiled blocks."""

    broadcast: str
    digest: str
    clips: int
    call_share: Summary
    time_share: Summary
    psnr_db: Summary
    ssim: Summary
    graphs: int
    clip_psnr_db: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON values; a PSNR of None says that the frames are the same."""
        return {
            "broadcast": self.broadcast,
            "digest": self.digest,
            "clips": self.clips,
            "graphs": self.graphs,
            **{name: _json(getattr(self, name)) for name in ("call_share", "time_share", "psnr_db", "ssim")},
            "clip_psnr_db": [_finite(value) for value in self.clip_psnr_db],
        }

    def line(self) -> str:
        """Tells it in one line."""
        return (
            f"{self.broadcast}: {self.call_share.median:.1%} of calls, {self.time_share.median:.1%} of planned time, "
            f"{self.psnr_db.median:.1f} dB (worst {self.psnr_db.least:.1f}, best {self.psnr_db.most:.1f}), "
            f"SSIM {self.ssim.median:.4f} (worst {self.ssim.least:.4f}) on {self.clips} held-out clips"
        )


def _json(values: Summary) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in asdict(values).items()}


def _finite(value: float) -> float | None:
    # JSON has no infinity.
    return round(value, 5) if math.isfinite(value) else None


@dataclass(slots=True, kw_only=True)
class RenderedClips:
    """Renders clips with a loaded model on one rank; those without reuse are kept, to compare with."""

    model: VideoModel
    family: Family
    precision: str
    group: NodeGroup
    unreused: dict[ClipRequest, Frames] = field(default_factory=dict)
    computed: Callable[[float], None] = lambda _steps: None
    """Is told how many whole steps of a clip were computed."""

    @property
    def batch(self) -> int:
        """How many clips are rendered together: on a GPU as many as the family takes."""
        return self.family.max_batch if self.group.device.type == "cuda" else 1

    def render_all(self, requests: Sequence[ClipRequest], rules: Rules) -> list[tuple[Frames, Denoised]]:
        """Returns what `render` returns, of several clips of one size. Foresight decides for each clip alone."""
        size = 1 if isinstance(rules, ForesightRules) else self.batch
        found: list[tuple[Frames, Denoised]] = []
        for first in range(0, len(requests), size):
            found += self._render_together(requests[first : first + size], rules)
        return found

    @torch.inference_mode()
    def _render_together(self, requests: Sequence[ClipRequest], rules: Rules) -> list[tuple[Frames, Denoised]]:
        if len(requests) == 1:
            return [self.render(requests[0], rules)]
        model = self.model
        done = denoise_batch(
            model,
            requests,
            prompts=model.encode_prompts(requests),
            noise=noise_of(requests, model.latent_shape(requests[0])),
            plan=plan_for(self.family, requests[0], rules, self.precision),
            group=self.group,
        )
        self.computed(len(requests) * done.plan.computed_share * done.plan.num_steps)
        frames = model.decode(done.latents, requests[0], self.group).fetch().numpy()
        return [(each, done) for each in frames]

    @torch.inference_mode()
    def render(self, request: ClipRequest, rules: Rules) -> tuple[Frames, Denoised]:
        """Returns a clip's frames [T, H, W, 3], uint8, and what denoising it did."""
        model = self.model
        done = denoise(
            model,
            request,
            prompt=model.encode_prompts([request])[0],
            noise=initial_noise(request, model.latent_shape(request)),
            plan=plan_for(self.family, request, rules, self.precision),
            group=self.group,
        )
        self.computed(done.plan.computed_share * done.plan.num_steps)
        return model.decode(done.latents, request, self.group).fetch()[0].numpy(), done

    @torch.inference_mode()
    def take_without_reuse(self, requests: Sequence[ClipRequest], latents: Tensor) -> None:
        """Remembers clips of which everything was computed, by their finished latents [B, C, T, H, W]."""
        if not latents.isfinite().all():
            return  # rendering them will say so
        frames = self.model.decode(latents, requests[0], self.group).fetch().numpy()
        self.unreused.update(zip(requests, frames, strict=True))

    def without_reuse(self, requests: Sequence[ClipRequest]) -> list[Frames]:
        """Returns the frames of clips of which everything is computed."""
        new = [request for request in requests if request not in self.unreused]
        for request, (frames, _) in zip(new, self.render_all(new, NO_BROADCAST), strict=True):
            self.unreused[request] = frames
        return [self.unreused[request] for request in requests]

    def psnr(self, requests: Sequence[ClipRequest], rules: Rules) -> list[float]:
        """Returns each clip's PSNR in dB against itself without reuse."""
        bases = self.without_reuse(requests)
        return [psnr(base, frames) for base, (frames, _) in zip(bases, self.render_all(requests, rules), strict=True)]

    def quality(self, name: str, requests: Sequence[ClipRequest], rules: Rules) -> PlanQuality:
        """Renders clips under some rules and judges them."""
        calls, times, noise, alike, graphs = [], [], [], [], 0
        bases = self.without_reuse(requests)
        for base, (frames, done) in zip(bases, self.render_all(requests, rules), strict=True):
            calls.append(done.plan.computed_share)
            times.append(time_share(self.family, done.plan))
            noise.append(psnr(base, frames))
            alike.append(ssim(base, frames))
            graphs = max(graphs, done.plan.graphs)
        return PlanQuality(
            broadcast=name, digest=rules.digest, clips=len(requests), call_share=summary(calls),
            time_share=summary(times), psnr_db=summary(noise), ssim=summary(alike), graphs=graphs,
            clip_psnr_db=tuple(noise),
        )  # fmt: skip


def time_share(family: Family, plan: BroadcastPlan) -> float:
    """Returns the share of the time of sites that a plan computes, by the family's cost figures."""
    shares = kind_shares(family)
    return sum(share * plan.computed(kind) / plan.total(kind) for kind, share in shares.items())


def kind_shares(family: Family) -> Mapping[str, float]:
    """Returns by kind of site its share of the planned time of all sites of a default clip; they add up to 1."""
    present, usual = {site.kind for site in family.sites}, family.defaults
    size = usual.num_frames, usual.height, usual.width
    seconds = family.cost.kind_s(family.num_tokens(*size), family.seen_tokens(*size))
    shares = {kind: share for kind, share in seconds.items() if kind in present}
    whole = sum(shares.values())
    return {kind: share / whole for kind, share in shares.items()}
