"""A clip through the loop with its own prompt and noise, on one rank unless a test says otherwise, and how far two differ."""

from torch import Tensor

from pab.broadcast.plan import BroadcastPlan
from pab.family import ClipRequest
from pab.model import Beginning, EncodedPrompt, VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import PLAIN_LOOP, Denoised, LoopSettings, denoise, initial_noise


def denoised(
    model: VideoModel,
    request: ClipRequest,
    plan: BroadcastPlan,
    *,
    group: NodeGroup | None = None,
    prompt: EncodedPrompt | None = None,
    noise: Tensor | None = None,
    given: Beginning | None = None,
    loop: LoopSettings = PLAIN_LOOP,
) -> Denoised:
    return denoise(
        model,
        request,
        prompt=prompt or model.encode_prompts([request])[0],
        noise=initial_noise(request, model.latent_shape(request)) if noise is None else noise,
        plan=plan,
        group=group or NodeGroup(),
        given=given,
        loop=loop,
    )


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
