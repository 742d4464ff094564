"""Where everything lies in a run's folder: every path that a run writes is made here."""

from __future__ import annotations

from collections.abc import Iterable

SCHEMA = 1
"""Version of records, failures and job reports; raised when a reader of an older one would misread them."""
RUN = "run.json"
MANIFEST = "manifest.parquet"
REFERENCES = "references.json"
RUN_REPORT = "reports/run.json"
RUN_PAGE = "reports/run.html"
INDEX = "reports/index.parquet"
KINDS = ("shards", "videos", "records", "failures", "attempts", "reports", "logs")
"""The folders of a run."""


def shard(index: int) -> str:
    """Returns the path of a job's clips."""
    return f"shards/{index:05d}.parquet"


def video(clip_id: str) -> str:
    """Returns the path of a clip's video."""
    return f"videos/{clip_id}.mp4"


def record(key: str) -> str:
    """Returns the path of a clip's record; `key` is `<clip_id>.<digest>`."""
    return f"records/{key}.json"


def failure(key: str, number: int) -> str:
    """Returns the path of the file that says how an attempt (1, 2, ...) failed."""
    return f"failures/{key}.{number}.json"


def attempt(key: str, number: int) -> str:
    """Returns the path of the mark written before an attempt (1, 2, ...) starts."""
    return f"attempts/{key}.{number}"


def encoding(shard_index: int, model: str, replica: int) -> str:
    """Returns the path of the mark that lies there while a replica of a job encodes its prompts for a model together."""
    return f"encoding/{job_name(shard_index)}.{model}.{replica}"


def job_name(shard_index: int) -> str:
    """Returns the name of the job of a shard, e.g. `job-00007`."""
    return f"job-{shard_index:05d}"


def shard_of(name: str) -> int:
    """Returns the shard of a job's name."""
    return int(name.removeprefix("job-"))


def job_report(shard_index: int, suffix: str = "json") -> str:
    """Returns the path of a job's speedup report; `suffix` is "json" or "html"."""
    return f"reports/{job_name(shard_index)}.{suffix}"


def job_log(shard_index: int, start: str, rank: int) -> str:
    """Returns the path of one rank's log; `start` names one start of the job."""
    return f"logs/{job_name(shard_index)}.{start}.rank{rank}.log"


def attempts_by_key(names: Iterable[str]) -> dict[str, list[int]]:
    """Reads names of the form `<clip_id>.<digest>.<attempt>`: clip key -> attempts, ascending.

    A clip id may hold dots: the attempt is the last part, the digest the one before.
    """
    found: dict[str, list[int]] = {}
    for name in names:
        key, _, number = name.rpartition(".")
        if number.isdigit():
            found.setdefault(key, []).append(int(number))
    return {key: sorted(numbers) for key, numbers in found.items()}
