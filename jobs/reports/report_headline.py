"""A job's and a run's headline: frames a second and clips per GPU-hour, from the first prompt to the last record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Json = dict[str, Any]
HOW = (
    "from the first prompt to the last record, with text, decoding, encoding and samples rendered twice; without loading, "
    "and without pauses between starts"
)


def spans_of(records: Iterable[Json], starts: Iterable[Json], ranks: int) -> list[Json]:
    """Returns, of each start of a job that has recorded clips, from when to when it rendered, and what.

    Seconds since 1970. It begins with its prompts, which are encoded before the first clip's mark.
    """
    prompts_s = {(start["job_id"], start["start"]): float(start.get("prompts_s", 0.0)) for start in starts}
    by_start: dict[tuple[str, int], list[Json]] = {}
    for record in records:
        by_start.setdefault((record["job"]["job_id"], record["job"]["start"]), []).append(record)
    return [
        {
            **_later(mine),
            "begun": min(_moment(record["started_at"]) for record in mine) - prompts_s.get(start, 0.0),
            "ended": max(_moment(record["recorded_at"]) for record in mine),
            "ranks": ranks,
            "clips": len(mine),
            "frames": sum(record["video"]["num_frames"] for record in mine),
        }
        for start, mine in by_start.items()
    ]


def _later(records: Sequence[Json]) -> Json:
    """Returns what a start recorded after each of its replicas had recorded a clip: without what first clips compile."""
    first: dict[int, float] = {}
    for record in records:
        rank, moment = record["job"]["rank"], _moment(record["recorded_at"])
        first[rank] = min(moment, first.get(rank, moment))
    settled = max(first.values())
    later = [record for record in records if _moment(record["recorded_at"]) > settled]
    last = max((_moment(record["recorded_at"]) for record in later), default=settled)
    return {"later_s": round(last - settled, 3), "later_frames": sum(each["video"]["num_frames"] for each in later)}


def headline(spans: Sequence[Mapping[str, Any]]) -> Json | None:
    """Returns the figures of all spans together; None of none. Spans at the same time are of different ranks.

    `seconds`: in which at least one start rendered. `ranks`: on average over them. `later_frames_per_second`: of a start, of
    the clips that were recorded after each of its replicas had recorded one, on average.
    """
    seconds, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: float(span["begun"])):
        seconds += max(0.0, span["ended"] - max(until, span["begun"]))
        until = max(until, span["ended"])
    rank_s = sum((span["ended"] - span["begun"]) * span["ranks"] for span in spans)
    if not seconds:
        return None
    later_s = sum(span["later_s"] for span in spans)
    clips, frames = (sum(span[name] for span in spans) for name in ("clips", "frames"))
    return {
        "frames_per_second": round(frames / seconds, 3),
        "clips_per_gpu_hour": round(3600 * clips / rank_s, 3),
        "later_frames_per_second": round(sum(span["later_frames"] for span in spans) / later_s, 3) if later_s else None,
        "seconds": round(seconds, 3),
        "ranks": round(rank_s / seconds, 2),
        "clips": clips,
        "frames": frames,
        "how": HOW,
    }


def exchanges(records: Sequence[Json]) -> Json | None:
    """Returns the seconds that clips' root ranks spent in exchanges, exposed and hidden, of records that tell; else None."""
    told = [record["exchanges"] for record in records if record.get("exchanges")]
    if not told:
        return None
    exposed_s, hidden_s = (sum(float(each[name]) for each in told) for name in ("exposed_s", "hidden_s"))
    denoise_s = sum(sum(record["steps"]["seconds"]) for record in records if record.get("exchanges"))
    return {
        "exposed_s": round(exposed_s, 4),
        "hidden_s": round(hidden_s, 4),
        "exposed_share": round(exposed_s / denoise_s, 4) if denoise_s else None,
        "denoise_s": round(denoise_s, 4),
        "clips": len(told),
        "how": "of one rank per clip, while it denoised; exposed: it had nothing else to do, and may have waited for a "
        "slower rank; share: of denoising",
    }


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
