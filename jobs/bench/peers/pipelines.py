"""What users would pick instead, run as its own pipeline and documentation have it: diffusers, and cache-dit over it.

Latte's transformer in diffusers gets the very weights of ours, so that the two may be compared number for number.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jobs.bench import cache_dit_pipe
from jobs.bench.library_subjects import LIBRARY_SUBJECTS, plain_transformer
from jobs.bench.measure import OurClips, Timed
from jobs.bench.rows import CACHE_DIT, Row
from jobs.bench.subjects import Subject
from pab.broadcast.rules import BroadcastRules
from pab.execution.compiled import many_graphs
from pab.families.latte.blocks import LatteConfig
from pab.families.latte.transformer import Latte
from pab.family import ClipRequest
from pab.library.video import DiffusersVideo
from pab.nn.noise_video import NoiseVideo
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import initial_noise
from pab.sampling.device_clock import DeviceClock


class NotHereError(Exception):
    """A row cannot run on this machine; the message says what is missing."""


MODULES = {"diffusers": "diffusers", CACHE_DIT: "cache_dit"}


def require(side: str) -> None:
    """Raises NotHereError where a library is not installed."""
    for name in ("diffusers",) if side == "diffusers" else ("diffusers", CACHE_DIT):
        if importlib.util.find_spec(MODULES[name]) is None:
            wanted = "'pab-pipeline[models]'" if name == "diffusers" else name
            raise NotHereError(f"{name} is not installed: pip install {wanted}")


class LattePeer:
    """diffusers' Latte pipeline over the subject's weights, run as a row says. Latents only; nothing is decoded."""

    def __init__(self, subject: Subject, row: Row, backend: str) -> None:
        from diffusers import DDIMScheduler, LattePipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it warns of every cast of a module
        assert isinstance(subject.model, NoiseVideo), "the subject is Latte"
        ours = subject.model.transformer
        assert isinstance(ours, Latte), "the subject is Latte"
        # Nothing of our transformer is kept, so that its memory is not counted as theirs.
        self._encode_text, self._latent_shape = subject.model.encode_text, subject.model.codec.latent_shape
        self._levels, self._device = subject.family.timesteps, subject.device
        self._timesteps, self._step = self._levels(subject.requests[0], ""), 0
        self._pipe = LattePipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=_same_transformer(ours, subject.device),
            scheduler=DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False),
        )
        self._pipe.set_progress_bar_config(disable=True)
        if row.side == CACHE_DIT:
            self._cache_blocks(subject.short)
        if row.broadcast != "none":
            self._broadcast(row)
        if row.mode == "compiled":
            self._compile(backend, whole="whole" in row.options)

    def clip(self, request: ClipRequest) -> Timed:
        """Renders one clip; its seconds begin when the pipeline is called, some milliseconds before its first step."""
        shape = self._latent_shape(request.num_frames, request.height, request.width)
        prompt, negative = self._texts(request)
        noise = initial_noise(request, shape).to(self._device, self._pipe.transformer.dtype)
        self._timesteps, self._step = self._levels(request, ""), 0
        clock = DeviceClock(self._device)

        def after_step(_pipe: object, step: int, _timestep: object, _tensors: object) -> dict[str, Any]:
            self._step = min(step + 1, len(self._timesteps) - 1)
            clock.mark()
            return {}

        clock.mark()
        latents = self._pipe(
            negative_prompt=None,
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            latents=noise,
            num_inference_steps=request.num_steps,
            guidance_scale=request.guidance_scale,
            video_length=request.num_frames,
            height=request.height,
            width=request.width,
            output_type="latent",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
        ).frames
        return Timed(step_seconds=tuple(clock.seconds()), pictures=latents[0].float().cpu())

    def _texts(self, request: ClipRequest) -> tuple[Tensor, Tensor]:
        # What our model reads too: the text of a prompt, cut to the tokens that count.
        states = self._encode_text([request.prompt, request.negative_prompt or ""])
        tokens = int(states.mask_BL[0].sum())
        return states.y_BLC[:1, :tokens], states.y_BLC[1:, :tokens]

    def _cache_blocks(self, short: ClipRequest) -> None:
        """Turns cache-dit on. Raises NotHereError with its own words if it does not know the pipeline.

        The adapter that it asks for then is tried with nothing cached: that must not change a clip.
        """
        import cache_dit

        try:
            cache_dit.enable_cache(self._pipe)
        except ValueError as error:
            refusal = str(error)
        else:
            return
        exact = self.clip(short).pictures
        transformer = self._pipe.transformer
        adapter = cache_dit.BlockAdapter(
            pipe=self._pipe,
            transformer=transformer,
            blocks=[transformer.transformer_blocks, transformer.temporal_transformer_blocks],
            forward_pattern=[cache_dit.ForwardPattern.Pattern_3] * 2,
            check_forward_pattern=False,
        )
        cache_dit.enable_cache(
            adapter, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0)
        )
        off = float((self.clip(short).pictures - exact).norm() / exact.norm())
        raise NotHereError(
            f"cache-dit says: {refusal} With a BlockAdapter that caches nothing, a clip of {short.num_steps} steps is "
            f"{off:.1%} off its own pipeline's (root mean squares): it runs each list of blocks as a whole, Latte alternates"
        )

    def _broadcast(self, row: Row) -> None:
        """Turns diffusers' own PAB on, with the ranges and the window of our preset; it has no MLP broadcast."""
        from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        rules = row.family.presets[row.broadcast]
        if not isinstance(rules, BroadcastRules):
            raise NotHereError(f"diffusers has no {row.broadcast}")
        ranges: dict[str, Any] = {}
        for kind in ("spatial", "temporal", "cross"):
            rule = rules.attention(kind)
            if rule is not None:
                ranges[f"{kind}_attention_block_skip_range"] = rule.range_steps
                ranges[f"{kind}_attention_timestep_skip_range"] = (rule.low, rule.high)
        # As documented the timestep is the pipeline's tensor, for which every attention waits.
        on_host = (lambda: int(self._timesteps[self._step])) if "host" in row.options else None
        config = PyramidAttentionBroadcastConfig(
            **ranges, current_timestep_callback=on_host or (lambda: self._pipe._current_timestep)
        )
        apply_pyramid_attention_broadcast(self._pipe.transformer, config)

    def _compile(self, backend: str, *, whole: bool) -> None:
        """Compiles every block, as diffusers' regional compilation does, or the whole transformer."""
        transformer = self._pipe.transformer
        blocks = [*transformer.transformer_blocks, *transformer.temporal_transformer_blocks]
        for module in [transformer] if whole else blocks:
            # Left to itself torch would make the second shape dynamic, and slower.
            module.compile(backend=backend, dynamic=False)


class WanPeer:
    """diffusers' Wan pipeline over the subject's weights, eager or with its blocks compiled as its documentation has it.

    cache-dit over it runs by its defaults, or as `half` says.
    """

    def __init__(self, subject: Subject, row: Row, backend: str) -> None:
        from diffusers import WanPipeline
        from diffusers.utils import logging

        allowed = (cache_dit_pipe.HALF,) if row.side == CACHE_DIT else ()
        if row.broadcast != "none" or set(row.options) - {*allowed}:
            words = " or ".join(("none", *allowed))
            raise NotHereError(f"of Wan only {row.side}: eager {words} and compiled {words} are measured")
        logging.set_verbosity_error()
        assert isinstance(subject.model, DiffusersVideo), "the subject is Wan"
        model = subject.model
        transformer = plain_transformer(model, subject.device)
        self._encode_text, self._latent_shape = model.encode_text, model.codec.latent_shape
        self._prepare_text, self._device = model.prepare_text, subject.device
        sampler: Any = model.sampler(subject.requests[0])
        self._pipe = cache_dit_pipe.own_class(WanPipeline)(
            tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=sampler.scheduler
        )
        self._pipe.set_progress_bar_config(disable=True)
        self._cached = row.side == CACHE_DIT
        if self._cached:
            half = cache_dit_pipe.HALF in row.options
            cache_dit_pipe.enable(
                self._pipe, cache_dit_pipe.half_config(subject.requests[0].num_steps) if half else None
            )
        if row.mode == "compiled":
            transformer.compile_repeated_blocks(backend=backend, dynamic=False)

    def clip(self, request: ClipRequest) -> Timed:
        """Renders one clip; its seconds begin when the pipeline is called, some milliseconds before its first step."""
        shape = self._latent_shape(request.num_frames, request.height, request.width)
        text = self._prepare_text(self._encode_text([request.prompt, request.negative_prompt or ""]))
        assert isinstance(text, Tensor), "Wan's text is one tensor"
        clock = DeviceClock(self._device)

        def after_step(*_: object) -> dict[str, Any]:
            clock.mark()
            return {}

        clock.mark()
        latents = self._pipe(
            prompt_embeds=text[:1],
            negative_prompt_embeds=text[1:],
            latents=initial_noise(request, shape).to(self._device),
            num_inference_steps=request.num_steps,
            guidance_scale=request.guidance_scale,
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            output_type="latent",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
        ).frames
        share = None
        if self._cached:
            share = cache_dit_pipe.computed_share(self._pipe.transformer, num_steps=request.num_steps, passes=2)
        return Timed(step_seconds=tuple(clock.seconds()), pictures=latents[0].float().cpu(), computed_share=share)


class LibraryPeer:
    """The library's own transformer without sites, eager or with its blocks compiled, driven by our loop.

    What the library's pipeline does between two passes takes microseconds, so a step takes what it takes there.
    """

    def __init__(self, subject: Subject, row: Row, backend: str) -> None:
        if row.side == CACHE_DIT or row.broadcast != "none" or row.options:
            raise NotHereError(f"of {row.group.name} only {row.side}: eager none and compiled none are measured")
        assert isinstance(subject.model, DiffusersVideo), "the subject is of the library"
        transformer = plain_transformer(subject.model, subject.device)
        if row.mode == "compiled":
            # What `compile_repeated_blocks` does; some classes of the library do not name their blocks.
            for path in dict.fromkeys(site.name.rpartition(".")[0] for site in subject.sites):
                transformer.get_submodule(path).compile(backend=backend, dynamic=False)
        described = LIBRARY_SUBJECTS[row.group.name]
        plain = replace(subject, model=described.model(transformer, subject.size, subject.device, sites=False))
        self._clips = OurClips(subject=plain, broadcast="none", group=NodeGroup(device=subject.device))

    def clip(self, request: ClipRequest) -> Timed:
        """Renders one clip."""
        with many_graphs():
            return self._clips.clip(request)


PEERS: Mapping[str, type[LattePeer] | type[WanPeer] | type[LibraryPeer]] = {
    "latte": LattePeer,
    "wan": WanPeer,
    "wan_14b": WanPeer,
    "hunyuan_video": LibraryPeer,
    "cogvideox": LibraryPeer,
    "ltx": LibraryPeer,
}
"""By group of rows."""


def _same_transformer(ours: Latte, device: torch.device) -> Any:
    from diffusers import LatteTransformer3DModel

    weights = ours.state_dict()
    with device:
        theirs = LatteTransformer3DModel(**_published_config(ours.config))
    missing, surplus = theirs.load_state_dict(weights, strict=False)
    assert not surplus, f"weights that diffusers' Latte does not know: {surplus}"
    assert all("pos_embed" in name for name in missing), f"weights of diffusers' Latte that ours lacks: {missing}"
    return theirs.to(ours.proj_out.weight.dtype).eval()


def _published_config(config: LatteConfig) -> dict[str, Any]:
    return {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.num_layers,
        "cross_attention_dim": config.hidden_size,
        "attention_bias": True,
        "sample_size": config.sample_size,
        "patch_size": config.patch_size,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": config.caption_channels,
        "video_length": config.video_length,
    }
