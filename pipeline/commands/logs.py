"""`logs`: what the jobs logged about one clip."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from jobs.store.bucket import Bucket
from pipeline.exits import Exit
from pipeline.run.run import load_run, open_bucket
from pipeline.screen import Screen


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a job's log about a clip."""

    file: str
    line: str


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `logs`."""
    bucket = open_bucket(arguments.output)
    load_run(bucket)
    found = list(find_lines(bucket, arguments.clip))
    text = "\n".join(f"{line.file}: {line.line}" for line in found)
    screen.result(
        {"output": bucket.url, "clip_id": arguments.clip, "lines": [asdict(line) for line in found]},
        text or f"no log in {bucket.url}/logs names clip {arguments.clip}; a job's log is written when the job ends",
    )
    return Exit.OK


def find_lines(bucket: Bucket, clip_id: str) -> Iterator[LogLine]:
    """Yields the lines that name a clip, file after file. Raises BucketError."""
    # As `jobs/log.py` writes a value: plain, or as JSON where it needs quotes.
    value = rf"(?:{re.escape(clip_id)}|{re.escape(json.dumps(clip_id))})"
    named = re.compile(rf"(?:^| )clip={value}(?: |$)")
    for name in sorted(bucket.names("logs")):
        if not name.endswith(".log"):
            continue
        for line in bucket.read(f"logs/{name}").decode(errors="replace").splitlines():
            if named.search(line):
                yield LogLine(file=name, line=line)
