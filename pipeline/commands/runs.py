"""`runs`: the runs whose folders lie in one folder or under one prefix, the newest first."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError, DamagedError
from manifests.printable import one_line
from pipeline.exits import Exit, UsageError
from pipeline.run.run import open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.screen import Screen, counted


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run of the folder. `rendered`: clips that have a record; `failed`: as its latest report says, None without one."""

    name: str
    run_id: str
    created: str
    model: str
    num_clips: int
    rendered: int
    failed: int | None


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `runs`."""
    bucket = open_bucket(arguments.prefix)
    names = [name for name in bucket.folders() if not name.startswith(".")]
    if not names and not bucket.exists(layout.RUN):
        raise UsageError(f"{bucket.url} has no folders, so no runs; name the folder or prefix in which runs lie")
    places = {name: open_bucket(f"{bucket.url}/{name}") for name in names}
    if bucket.exists(layout.RUN):
        places = {".": bucket}
    found = [each for each in bucket.map_files(lambda name: find(name, places[name]), places).values() if each]
    found.sort(key=lambda each: each.created, reverse=True)
    screen.result({"prefix": bucket.url, "runs": [asdict(each) for each in found]}, _text(bucket, found))
    return Exit.OK


def find(name: str, bucket: Bucket) -> FoundRun | None:
    """Returns the run in a folder; None if there is none, or its run.json is damaged. Raises BucketError."""
    try:
        document = bucket.read_json(layout.RUN)
    except (FileNotFoundError, DamagedError):
        return None
    if not {"run_id", "num_clips"} <= document.keys():  # another program's
        return None
    return FoundRun(
        name=name,
        run_id=str(document.get("run_id", "?")),
        created=str(document.get("created", "")),
        model=", ".join(sorted(map(str, document.get("weights", {})))) or "?",
        num_clips=_count(document.get("num_clips")),
        rendered=_rendered(bucket, grown=bool(document.get("changes"))),
        failed=_failed(bucket),
    )


def _rendered(bucket: Bucket, *, grown: bool) -> int:
    """Returns how many clips of the run's manifest have a record.

    `grown`: whether that manifest has changed. Only then is it read: records of what left it may still lie there.
    """
    recorded = bucket.recorded_keys()
    try:
        keys = run_keys(bucket) if grown else None
    except DamagedError:  # what `status` says of it; the other runs are listed
        keys = None
    return len(recorded if keys is None else recorded & keys)


def _failed(bucket: Bucket) -> int | None:
    try:
        outcomes = bucket.read_json(layout.RUN_REPORT).get("outcomes", {})
    except (FileNotFoundError, BucketError):
        return None
    return _count(outcomes.get("failed")) + _count(outcomes.get("quarantined")) if isinstance(outcomes, dict) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _text(bucket: Bucket, found: list[FoundRun]) -> str:
    lines = [f"{counted(len(found), 'run')} in {bucket.url}"]
    names = [one_line(each.name) for each in found]
    width = max(map(len, names), default=0)
    for name, each in zip(names, found, strict=True):
        failed = f", {each.failed:,} failed" if each.failed else ""
        done = f"{each.rendered:,} of {counted(each.num_clips, 'clip')}{failed}"
        lines.append(f"{name:<{width}}  {each.created[:16].replace('T', ' ')}  {each.model}, {done}")
    return "\n".join(lines)
