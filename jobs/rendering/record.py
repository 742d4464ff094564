"""The record of a rendered clip: what `records/<clip_id>.<digest>.json` holds. Written last; it is what "done" means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TypedDict

from jobs.media.encode import Video
from jobs.quality.alarms import PixelStatistics, alarms_of
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_loras import clip_loras
from jobs.rendering.context import JobContext, versions
from jobs.rendering.loops import clip_requests
from jobs.store import layout
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import KINDS
from pab.parallel.exchange import Waiting
from pab.parallel.mesh import NodeGroup


class ClipRecord(TypedDict):
    """A record's keys, in the order in which they are written (docs/jobs.md explains them)."""

    schema: int
    clip_id: str
    digest: str
    clip: dict[str, object]
    seed: int
    weights: str | None
    loras: list[dict[str, object]]
    references: list[dict[str, str]]
    attempt: int
    plan: dict[str, object]
    loops: list[dict[str, object]]
    planned: dict[str, object]
    counted: dict[str, object]
    batch: dict[str, object]
    exchanges: dict[str, float] | None
    kept_bytes_peak: int
    execution: dict[str, object]
    seconds: dict[str, float]
    steps: dict[str, object]
    elapsed_s: float
    started_at: str
    recorded_at: str
    video: dict[str, object]
    job: dict[str, object]
    versions: dict[str, str]
    warnings: list[str]
    energy: dict[str, object] | None
    alarms: list[str]
    pixels: dict[str, float | None]


def clip_record(
    attempt: Attempt,
    context: JobContext,
    *,
    video: Video,
    sha256: str,
    pixels: PixelStatistics,
    beside: Mapping[str, str] | None = None,
    signed: Mapping[str, object] | None = None,
) -> ClipRecord:
    """Returns the record of a rendered clip. Seconds are wall time; counts are those of the clip's root rank.

    `beside`: what `leave_beside` gives, the paths of files that show the clip too. `signed`: what `VideoSigner.sign` gives;
    None for a video without a manifest.
    """
    clip, denoised = attempt.clip, attempt.denoised
    return {
        "schema": layout.SCHEMA,
        "clip_id": clip.clip_id,
        "digest": clip.digest,
        "clip": asdict(clip),
        "seed": clip.seed,
        "weights": context.settings.weights_of(clip.model),
        "loras": [asdict(lora) for lora in clip_loras(clip, context.settings.loras_of(clip.model))],
        "references": [
            {"url": url, "sha256": sha256} for url, sha256 in zip(clip.references, clip.reference_digests, strict=True)
        ],
        "attempt": attempt.number,
        "plan": plan_facts([loop.plan for loop in attempt.loops], clip.broadcast) | instead_facts(attempt),
        "loops": loop_facts(attempt),
        "planned": planned_counts(attempt, context.ranks.node),
        "counted": counted(attempt),
        "batch": {"size": max(1, len(attempt.company)), "clips": list(attempt.company)},
        "exchanges": _waited(denoised.waiting) if context.ranks.node.clip.size > 1 else None,
        "kept_bytes_peak": denoised.kept_bytes_peak,
        "execution": execution_facts(attempt),
        "seconds": {stage: round(seconds, 6) for stage, seconds in attempt.stages.seconds.items()},
        "steps": {"pattern": list(attempt.patterns), "seconds": [round(s, 6) for s in denoised.step_seconds]},
        "elapsed_s": round(attempt.elapsed_s, 6),
        "started_at": attempt.started_at,
        "recorded_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "video": video_facts(video, layout.render(clip.key, sha256), sha256)
        | ({} if signed is None else {"c2pa": dict(signed)})
        | dict(beside or {}),
        "job": context.facts() | {"precision": attempt.precision},
        "versions": versions(),
        "warnings": [*attempt.warnings, *([other] if (other := context.other_program) else [])],
        "energy": energy_facts(attempt),
        "alarms": list(alarms_of(pixels)),
        "pixels": pixels.facts(),
    }


def execution_facts(attempt: Attempt) -> dict[str, object]:
    """Returns how a clip's passes ran. `same_length`: its texts were filled up, as recorded loops need it."""
    loop, compiled, pieces = attempt.denoised, attempt.compiled, attempt.coming.pieces
    return {
        **asdict(attempt.execution),
        **({} if pieces is None else {"decoded_in": pieces}),
        "same_length": loop.same_length,
        "rows_in_turn": loop.rows_in_turn,
        "graphs": compiled.graphs,
        "compile_s": round(compiled.seconds, 3),
    }


def energy_facts(attempt: Attempt) -> dict[str, object] | None:
    """Returns the joules that a clip's GPUs used for it, and how many they were; None where they do not count them."""
    found = None if attempt.energy is None else attempt.energy.fetch()
    return None if found is None else asdict(found)


def video_facts(video: Video, path: str, sha256: str) -> dict[str, object]:
    """Returns a video's facts as JSON values; `path` is relative to the run's folder."""
    sound = video.sound
    return {
        "path": path,
        "sha256": sha256,
        "size_bytes": video.size_bytes,
        "num_frames": video.num_frames,
        "fps": video.fps,
        "width": video.width,
        "height": video.height,
        "padding": {"columns": video.padding[0], "rows": video.padding[1]},
        "codec": "h264",
        "crf": video.crf,
        "psnr_db": video.psnr_db,
        **({} if sound is None else {"sound": {"codec": "aac", "rate": sound.rate, "channels": sound.channels}}),
    }


def loop_facts(attempt: Attempt) -> list[dict[str, object]]:
    """Returns each loop's text, seed, plan and measurements."""
    return [
        {
            "prompt": request.prompt,
            "seed": request.seed,
            "plan": loop.plan.digest,
            "computed": _by_kind(loop.computed),
            "denoise_s": round(sum(loop.step_seconds), 6),
            "given_latent_frames": 0 if mask is None else sum(source is not None for source in mask.sources),
        }
        for request, loop, mask in zip(clip_requests(attempt.clip), attempt.loops, attempt.masks, strict=True)
    ]


def plan_facts(plans: Sequence[BroadcastPlan], broadcast: str) -> dict[str, object]:
    """Returns the names of a clip's plan, and counts over all steps and sites of all loops, for one pass per step.

    `plans`: one per loop. They are all the same, except under Foresight, which decides block by block. Names and blocks are
    those of the first.
    """
    plan = plans[0]
    facts: dict[str, object] = {
        "broadcast": broadcast,
        "digest": plan.digest,
        "rules_digest": plan.rules.digest,
        "rules": plan.rules.to_dict(),
        "num_steps": plan.num_steps,
        "held_back": plan.held_back,
        "full_steps": len(plan.full_steps),
        "computed": {kind: sum(each.computed(kind) for each in plans) for kind in KINDS},
        "total": {kind: sum(each.total(kind) for each in plans) for kind in KINDS},
    }
    if isinstance(plan.rules, ForesightRules):
        facts["blocks"] = plan.block_decisions()
    return facts


def instead_facts(attempt: Attempt) -> dict[str, object]:
    """Returns the broadcast that a clip was rendered with otherwise than asked for, and why; nothing for any other clip."""
    facts: dict[str, object] = {}
    if attempt.instead is not None:
        facts |= {"rendered": attempt.instead, "stepped_down": True}
    if attempt.less is not None:
        facts |= {"rendered": attempt.less.broadcast, "out_of_memory": True}
    return facts


def planned_counts(attempt: Attempt, group: NodeGroup) -> dict[str, object]:
    """Returns the counts that the plan predicts for one rank: site calls by kind, and all-to-alls."""
    plans, passes = [loop.plan for loop in attempt.loops], attempt.denoised.passes
    exchanging = passes if group.sp.size > 1 else 0
    return {
        "computed": {kind: sum(plan.computed(kind) for plan in plans) * passes for kind in KINDS},
        "reused": {kind: sum(plan.total(kind) - plan.computed(kind) for plan in plans) * passes for kind in KINDS},
        "all_to_alls": exchanging * sum(plan.all_to_alls for plan in plans),
        "all_to_alls_without_broadcast": exchanging * sum(plan.all_to_alls_without_broadcast for plan in plans),
    }


def counted(attempt: Attempt) -> dict[str, object]:
    """Returns what this rank counted in denoising: site calls by kind, collectives and sent bytes."""
    denoised = attempt.denoised
    return {
        "computed": _by_kind(denoised.computed),
        "reused": _by_kind(denoised.reused),
        **asdict(denoised.traffic),
    }


def _waited(waiting: Waiting) -> dict[str, float]:
    return {"exposed_s": round(waiting.exposed_s, 6), "hidden_s": round(waiting.hidden_s, 6)}


def _by_kind(counts: Mapping[str, int]) -> dict[str, int]:
    return {kind: counts.get(kind, 0) for kind in KINDS}
