"""Where everything lies in a run's folder: every path that a run writes is made here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

SCHEMA = 1
"""Version of records, failures and job reports; raised when a reader of an older one would misread them."""
RUN = "run.json"
MANIFEST = "manifest.parquet"
REFERENCES = "references.json"
RUN_REPORT = "reports/run.json"
RUN_PAGE = "reports/run.html"
SHARED_PAGE = "reports/shared.html"
"""The run's page for others, with links that end."""
INDEX = "reports/index.parquet"
GALLERY, SHARED_GALLERY = "gallery", "shared"
"""The folders in `reports/` where the two pages find their clips."""
KINDS = ("shards", "renders", "videos", "records", "failures", "attempts", "reports", "logs", "claims")
"""The folders of a run."""
SHA256_DIGITS = 16
"""How much of the hash of its bytes the name of a video in `renders/` has; its record has the whole."""


def shard(index: int) -> str:
    """Returns the path of a job's clips."""
    return f"shards/{index:05d}.parquet"


def render(key: str, sha256: str) -> str:
    """Returns the path of a video that a record names. Its bytes decide it, so no other attempt writes other bytes there."""
    return f"renders/{key}.{sha256[:SHA256_DIGITS]}.mp4"


def poster(key: str, sha256: str) -> str:
    """Returns the path of a small picture of a video; `sha256` is the video's, so each video has a picture of its own."""
    return f"posters/{key}.{sha256[:SHA256_DIGITS]}.jpg"


def sample(key: str, sha256: str) -> str:
    """Returns the path of a video of a clip without reuse; the clip's own, with reuse, is beside it on pages."""
    return f"samples/{key}.{sha256[:SHA256_DIGITS]}.mp4"


def rendered_key(name: str) -> str:
    """Returns the clip's key from the name of a file in `renders/`, `posters/` or `samples/`; empty if it is none of ours."""
    stem, _, suffix = name.rpartition(".")
    key, _, rest = stem.rpartition(".")
    return key if suffix in ("mp4", "jpg") and len(rest) == SHA256_DIGITS else ""


def video(clip_id: str) -> str:
    """Returns the plain name of a clip's video: a copy of the file that its record names, written after the record."""
    return f"videos/{clip_id}.mp4"


def is_video(path: str) -> bool:
    """Whether a path that stands in a record is one of ours. Whoever writes to a bucket must not choose what is read."""
    return re.fullmatch(r"(videos|renders)/[A-Za-z0-9._-]+\.mp4", path) is not None


def is_poster(path: str) -> bool:
    """Whether a path that stands in a record is one that `poster` makes."""
    return re.fullmatch(r"posters/[A-Za-z0-9._-]+\.jpg", path) is not None


def is_sample(path: str) -> bool:
    """Whether a path that stands in a record is one that `sample` makes."""
    return re.fullmatch(r"samples/[A-Za-z0-9._-]+\.mp4", path) is not None


def record(key: str) -> str:
    """Returns the path of a clip's record; `key` is `<clip_id>.<digest>`."""
    return f"records/{key}.json"


def aside(path: str, stamp: str) -> str:
    """Returns where a damaged file, such as `records/a.0a.json`, is put aside."""
    folder, _, name = path.rpartition("/")
    return f"history/{name}.{folder}.{stamp}"


def claim(name: str) -> str:
    """Returns the path of a file that says that a submit is planning this run now."""
    return f"claims/{name}"


def failure(key: str, number: int) -> str:
    """Returns the path of the file that says how an attempt (1, 2, ...) failed."""
    return f"failures/{key}.{number}.json"


def attempt(key: str, number: int) -> str:
    """Returns the path of the mark written before an attempt (1, 2, ...) starts."""
    return f"attempts/{key}.{number}"


def encoding(shard_index: int, model: str, replica: int) -> str:
    """Returns the path of the mark that lies there while a replica of a job encodes its prompts for a model together."""
    return f"encoding/{job_name(shard_index)}.{model}.{replica}"


def less_memory(shard_index: int, model: str, kind: str, level: int) -> str:
    """Returns the path of the note that a job renders clips of a kind `level` ways (1, 2, ...) further down from now on.

    It is left when they did not fit into memory. Level 0: with as much kept, but without recorded loops.
    """
    return f"memory/{job_name(shard_index)}.{model}.{kind}.{level}.json"


def guard(shard_index: int, key: str) -> str:
    """Returns the path of what a job's guard decided about a plan; `key` names the plan and what is asked of it."""
    return f"guard/{job_name(shard_index)}.{key}.json"


def job_name(shard_index: int) -> str:
    """Returns the name of the job of a shard, e.g. `job-00007`."""
    return f"job-{shard_index:05d}"


def is_job_name(name: str) -> bool:
    """Whether a name is one that `job_name` makes."""
    return re.fullmatch(r"job-[0-9]{5,}", name) is not None


def shard_of(name: str) -> int:
    """Returns the shard of a job's name."""
    return int(name.removeprefix("job-"))


def job_report(shard_index: int, suffix: str = "json") -> str:
    """Returns the path of a job's speedup report; `suffix` is "json" or "html"."""
    return f"reports/{job_name(shard_index)}.{suffix}"


def gallery_file(folder: str, number: int) -> str:
    """Returns the path of a file of rows of the gallery; `folder` is GALLERY or SHARED_GALLERY."""
    return f"reports/{folder}/{number:05d}.js"


def gallery_script(folder: str) -> str:
    """Returns the path of the gallery's program."""
    return f"reports/{folder}/gallery.js"


def report_of(name: str) -> str:
    """Returns the job's name from the name of a file in `reports/`; empty if it is not the report of a job."""
    job = name.removesuffix(".json")
    return job if name.endswith(".json") and is_job_name(job) else ""


def job_log(shard_index: int, start: str, rank: int) -> str:
    """Returns the path of one rank's log; `start` names one start of the job."""
    return f"logs/{job_name(shard_index)}.{start}.rank{rank}.log"


def is_log(path: str) -> bool:
    """Whether a path is one that `job_log` makes."""
    return re.fullmatch(r"logs/job-[0-9]{5,}\.[A-Za-z0-9_-]+\.rank[0-9]+\.log", path) is not None


def log_of(job: Mapping[str, Any]) -> str | None:
    """Returns the path of the log that tells of a clip, from the `job` of its record or failure; None if that is damaged."""
    try:
        path = job_log(int(job["shard"]), f"{job['job_id']}-{job['start']}", int(job["rank"]))
    except (KeyError, TypeError, ValueError):
        return None
    return path if is_log(path) else None


def job_of(job: Mapping[str, Any]) -> str | None:
    """Returns the name of a job from the `job` of a record or failure; None if that is damaged."""
    shard = job.get("shard")
    return job_name(shard) if isinstance(shard, int) else None


def attempts_by_key(names: Iterable[str]) -> dict[str, list[int]]:
    """Reads names of the form `<clip_id>.<digest>.<attempt>`: clip key -> attempts, ascending.

    A clip id may hold dots: the attempt is the last part, the digest the one before.
    """
    found: dict[str, list[int]] = {}
    for name in names:
        key, _, number = name.rpartition(".")
        if number.isascii() and number.isdigit():
            found.setdefault(key, []).append(int(number))
    return {key: sorted(numbers) for key, numbers in found.items()}
