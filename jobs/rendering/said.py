"""What the manifest in a clip's video says of it."""

from __future__ import annotations

from typing import Any

from jobs.provenance.manifest import definition, text_facts
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_loras import clip_loras
from jobs.rendering.context import JobContext, versions
from pab.broadcast.rules import NO_BROADCAST


def said_of(attempt: Attempt, context: JobContext, *, without_reuse: bool = False) -> dict[str, Any]:
    """Returns what `VideoSigner.sign` puts into a clip's video, or into the sample of it that was rendered without reuse.

    No path, host or user of the machine is in it: videos are given away.
    """
    clip, settings = attempt.clip, context.settings
    choice = settings.render.c2pa_prompt
    weights = settings.weights_digests.get(clip.model)
    facts: dict[str, object] = {
        "clip_id": clip.clip_id,
        "run_id": settings.run_id,
        "request_digest": clip.digest,
        "model": clip.model,
        **({} if weights is None else {"weights_digest": weights}),
        **_some("lora_digests", [lora.digest for lora in clip_loras(clip, settings.loras_of(clip.model))]),
        **text_facts("prompt", clip.prompt, choice),
        **text_facts("negative_prompt", clip.negative_prompt, choice),
        **_some("reference_sha256", list(clip.reference_digests)),
        "seed": clip.seed,
        "plan_digest": NO_BROADCAST.digest if without_reuse else attempt.denoised.plan.rules.digest,
    }
    return definition(
        title=f"{clip.clip_id}.mp4", version=versions()["pab-pipeline"], made_at=attempt.started_at, clip=facts
    )


def _some(name: str, values: list[str]) -> dict[str, list[str]]:
    return {name: values} if values else {}
