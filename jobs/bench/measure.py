"""Times clips: the device's seconds from the first step to the end of the last, after a warm-up that counts apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jobs.bench.rows import IN_TURN, RECORDED, Row
from jobs.bench.subjects import Subject
from pab.broadcast.rules import KINDS
from pab.execution.choice import Execution
from pab.execution.compiled import executing, graphs_compiled
from pab.family import ClipRequest
from pab.parallel.exchange import Waiting
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, denoise, initial_noise, loop_settings
from pab.sampling.recorded_loop import LoopRecorder, run_again

Json = dict[str, Any]
ENOUGH_S = 25.0
"""What timed clips of one row may take together before no further one is begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One rendered clip. `pictures`: what its quality is measured on, latents [C, T, H, W] or uint8 frames [T, H, W, 3]."""

    step_seconds: tuple[float, ...]
    pictures: Tensor
    patterns: tuple[str, ...] | None = None
    computed_share: float | None = None
    kept_bytes: int | None = None
    plan_digest: str | None = None
    waiting: Waiting | None = None
    """Of a clip that several ranks share."""
    sent_bytes: int = 0
    """By this rank, in all-to-alls."""
    late_steps: int | None = None
    """Steps that the device had begun before all of their work was queued: the host was less than a step ahead."""

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(self.step_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a row of the table says, and a clip of each request to compare with others. `clips`: all that were timed."""

    line: Json
    pictures: tuple[Tensor, ...]
    clips: tuple[Timed, ...] = ()


def measure_ours(
    subject: Subject, row: Row, execution: Execution, group: NodeGroup, *, repeat: int, enough_s: float = ENOUGH_S
) -> Measured:
    """Measures a row of our own on a model that runs as `execution` says already. Collective over the group."""
    recorder = new_recorder(group) if execution.records else None
    clips = OurClips(
        subject=subject,
        broadcast=row.broadcast,
        group=group,
        keep=execution.keep,
        recorder=recorder,
        rows_in_turn=IN_TURN in row.options and subject.family.rows_in_turn,
        all_loops=RECORDED in row.options,
    )
    requests = tuple(row.asked(request) for request in subject.requests)
    with executing(execution, precision=subject.precision), torch.inference_mode():
        measured = measure(
            clips.clip,
            requests,
            warm_up=requests[0] if execution.compiled or row.sampling else subject.short,
            # Loops are recorded in the second clip of their kind.
            warm_ups=2 if recorder is not None else 1,
            repeat=repeat,
            enough_s=enough_s,
        )
    recorded = recorder is not None and recorder.recordings > 0
    if recorded and torch.cuda.is_available():
        # What a graph works in is reserved for it, and no longer allocated when it is replayed.
        measured.line["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
    if recorder is not None:
        recorder.forget()
    measured.line.update(replace(subject, requests=requests).facts())
    measured.line["execution"] = execution.identity.strip() + (" recorded" if recorded else "") or "eager"
    return measured


def new_recorder(group: NodeGroup) -> LoopRecorder:
    """Returns what records loops on a group's device; on a CPU a recording calls its steps again."""
    return LoopRecorder() if group.device.type == "cuda" else LoopRecorder(capture=lambda: run_again)


@dataclass(frozen=True, slots=True, kw_only=True)
class OurClips:
    """Denoises clips as a job does. `recorder` replays the loops of those that gain by it, or with `all_loops` of all."""

    subject: Subject
    broadcast: str
    group: NodeGroup
    keep: str = "full"
    recorder: LoopRecorder | None = None
    rows_in_turn: bool = False
    all_loops: bool = False

    def denoise(self, request: ClipRequest) -> Denoised:
        """Denoises one clip."""
        subject, model, group = self.subject, self.subject.model, self.group
        plan = subject.plan(request, self.broadcast)
        loop = loop_settings(
            request,
            subject.family,
            plan,
            group,
            self.recorder,
            rows_in_turn=self.rows_in_turn,
            all_loops=self.all_loops,
        )
        return denoise(
            model,
            request,
            prompt=model.encode_prompts([request])[0],
            noise=initial_noise(request, model.latent_shape(request)),
            plan=plan,
            group=group,
            loop=replace(loop, cache_dtype=self.keep),
        )

    def clip(self, request: ClipRequest) -> Timed:
        """Denoises one clip and returns what was measured."""
        done, subject = self.denoise(request), self.subject
        shown = done.latents
        if subject.decodes:
            shown = subject.model.decode(done.latents, request, self.group).fetch()
        return Timed(
            step_seconds=done.step_seconds,
            pictures=shown[0].cpu(),
            patterns=done.plan.patterns,
            computed_share=sum(map(done.plan.computed, KINDS)) / sum(map(done.plan.total, KINDS)),
            kept_bytes=done.kept_bytes_peak,
            plan_digest=done.plan.digest,
            waiting=done.waiting if self.group.clip.size > 1 else None,
            sent_bytes=done.traffic.all_to_all_bytes,
            late_steps=done.clock.late,
        )


def measure(
    clip: Callable[[ClipRequest], Timed],
    requests: Sequence[ClipRequest],
    *,
    warm_up: ClipRequest,
    warm_ups: int = 1,
    repeat: int,
    enough_s: float = ENOUGH_S,
) -> Measured:
    """Times every request `repeat` times after the warm-up clip, or fewer times once the timed ones took `enough_s`."""
    before = graphs_compiled()
    began = time.perf_counter()
    for _ in range(warm_ups):
        clip(warm_up)
    warm_up_s = time.perf_counter() - began
    warm = graphs_compiled()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clips: list[Timed] = []
    asked_before = _memory_asked()
    while len(clips) < repeat * len(requests):
        clips.append(clip(requests[len(clips) % len(requests)]))
        if len(clips) >= len(requests) and sum(each.seconds for each in clips) > enough_s:
            break
    line = summary(clips) | {
        "warm_up_s": warm_up_s,
        "warm_up_steps": warm_ups * warm_up.num_steps,
        "graphs": warm - before,
        "graphs_after_warm_up": graphs_compiled() - warm,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        "memory_asked_after_warm_up": _memory_asked() - asked_before,
    }
    return Measured(
        line=line, pictures=tuple(each.pictures for each in clips[: len(requests)]), clips=tuple(clips)
    )  # fmt: skip


def _memory_asked() -> int:
    # How often the allocator asked the device for memory, and gave some back for it: a clip that does so is slower.
    if not torch.cuda.is_available():
        return 0
    told = torch.cuda.memory_stats()
    return int(told.get("num_device_alloc", 0) + told.get("num_device_free", 0))


def summary(clips: Sequence[Timed]) -> Json:
    """Returns medians over clips; `spread` is the largest minus the smallest, None of a single clip."""
    seconds = [each.seconds for each in clips]
    kept = [each.kept_bytes for each in clips if each.kept_bytes is not None]
    shares = [each.computed_share for each in clips if each.computed_share is not None]
    waited = [each.waiting for each in clips if each.waiting is not None]
    late = [each.late_steps for each in clips if each.late_steps is not None]
    return {
        "seconds": median(seconds),
        "exposed_s": median(each.exposed_s for each in waited) if waited else None,
        "hidden_s": median(each.hidden_s for each in waited) if waited else None,
        "sent_gb": clips[0].sent_bytes / 1e9 if waited else None,
        "spread": max(seconds) - min(seconds) if len(seconds) > 1 else None,
        "clip_seconds": seconds,
        "slowest_steps": slowest_steps(clips),
        "late_steps": max(late) if late else None,
        "clips": len(clips),
        "steps": len(clips[0].step_seconds),
        "step_ms": step_ms(clips),
        "kept_gb": max(kept) / 1e9 if kept else None,
        "computed_share": median(shares) if shares else None,
        "plan": clips[0].plan_digest,
    }


def slowest_steps(clips: Sequence[Timed]) -> list[tuple[int, int, float]]:
    """Returns, of every clip, its number, the step that took longest beyond the median of its kind, and by how many ms."""
    found, usual = [], step_ms(clips)
    for number, each in enumerate(clips):
        patterns = _patterns(each)
        beyond = [seconds * 1e3 - usual[pattern] for pattern, seconds in zip(patterns, each.step_seconds, strict=True)]
        slowest = max(range(len(beyond)), key=beyond.__getitem__)
        found.append((number, slowest, beyond[slowest]))
    return found


def step_ms(clips: Sequence[Timed]) -> dict[str, float]:
    """Returns the median milliseconds of a step by what it computes, and of every step where that is not known."""
    found: dict[str, list[float]] = {}
    for each in clips:
        patterns = _patterns(each)
        for pattern, seconds in zip(patterns, each.step_seconds, strict=True):
            found.setdefault(pattern, []).append(seconds * 1e3)
    return {pattern: median(values) for pattern, values in found.items()}


def _patterns(clip: Timed) -> tuple[str, ...]:
    return clip.patterns or ("all",) * len(clip.step_seconds)
