"""The spans of a submit: the run, its jobs in it, and in them their clips, from start to record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from time import time_ns
from typing import TYPE_CHECKING, Any

from jobs.store import layout
from pipeline.run.state import FailedClip
from pipeline.signals.otlp import Otlp

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_RUNNING = "running"


class RunSpans:
    """Makes spans of what a driver sees. Times of clips are those of their records; of jobs, when the driver saw it."""

    def __init__(self, otlp: Otlp, *, facts: Mapping[str, Any]) -> None:
        self._otlp = otlp
        self._run = otlp.begin("run", time_ns(), facts=facts)
        self._jobs: dict[tuple[str, str], Span] = {}
        self._latest: dict[str, Span] = {}
        self._ended: set[tuple[str, str]] = set()

    def jobs(self, seen: Sequence[tuple[str, str, str]]) -> None:
        """Takes the name, id and state of each job."""
        for name, job_id, state in seen:
            key = name, job_id
            if state == _RUNNING and key not in self._jobs:
                facts = {"pab.job.name": name, "pab.job.id": job_id}
                self._latest[name] = self._jobs[key] = self._otlp.begin("job", time_ns(), within=self._run, facts=facts)
            elif state not in (_RUNNING, "waiting") and key in self._jobs and key not in self._ended:
                self._ended.add(key)
                self._otlp.end(self._jobs[key], time_ns(), facts={"pab.job.state": state})

    def rendered(self, record: Mapping[str, Any]) -> None:
        """Takes the record of a clip."""
        begun, ended = _ns(record.get("started_at")), _ns(record.get("recorded_at"))
        if begun is None or ended is None:
            return
        clip = record.get("clip", {})
        facts = {
            "pab.clip.id": record["clip_id"],
            "pab.clip.digest": record["digest"],
            "pab.clip.attempt": record.get("attempt"),
            **{f"pab.clip.{name}": clip.get(name) for name in ("model", "num_frames", "height", "width", "num_steps")},
            "pab.clip.broadcast": record["plan"].get("broadcast"),
            "pab.video.size_bytes": record["video"]["size_bytes"],
            "pab.clip.energy_joules": (record.get("energy") or {}).get("joules"),
            **{f"pab.stage.{stage}_s": seconds for stage, seconds in record["seconds"].items()},
        }
        self._clip(layout.job_of(record["job"]), begun, ended, facts)

    def failed(self, clip: FailedClip) -> None:
        """Takes a clip that was given up. Its message stays in the bucket: it may quote what is secret."""
        ended = _ns(clip.failed_at)
        begun = _ns(clip.started_at) or ended
        if begun is None or ended is None:
            return
        facts = {"pab.clip.id": clip.clip_id, "pab.clip.attempt": clip.attempt, "pab.clip.stage": clip.stage}
        self._clip(clip.job, begun, ended, facts, error=f"{clip.error} in {clip.stage}")

    def _clip(
        self, job: str | None, begun: int, ended: int, facts: Mapping[str, Any], error: str | None = None
    ) -> None:
        plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
        span = self._otlp.begin("clip", begun, within=self._latest.get(job or "", self._run), facts=plain)
        self._otlp.end(span, max(begun, ended), error=error)

    def close(self, *, exit_code: int | None) -> None:
        """Ends all spans. `exit_code`: the command's; None if it was interrupted."""
        for key, span in self._jobs.items():
            if key not in self._ended:
                self._otlp.end(span, time_ns())
        error = None if exit_code == 0 else "interrupted" if exit_code is None else f"exit code {exit_code}"
        self._otlp.end(self._run, time_ns(), error=error)


def _ns(text: object) -> int | None:
    """Returns the Unix time in nanoseconds of an ISO time; None for anything else."""
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1e9) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None
