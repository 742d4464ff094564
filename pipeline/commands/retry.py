"""`retry`: forgets the failures of failed clips, keeping what they said, so that the next submit renders them again."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, UsageError
from pipeline.run.run import load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import clip_id, keys_of, read_progress
from pipeline.screen import Screen, counted, own_command


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `retry`."""
    bucket = open_bucket(arguments.output)
    load_run(bucket)
    progress = read_progress(bucket, run_keys(bucket))
    keys = set(progress.not_rendered | progress.again)
    if arguments.clip:
        failed = {clip_id(key) for key in keys}
        for name in arguments.clip:
            if name not in failed:
                raise UsageError(f"--clip {name}: no such clip has failed; see: {own_command('status', bucket.url)}")
        keys = keys_of(arguments.clip, keys)
    keep_failures(bucket, keys)
    forgotten = [clip_id(key) for key in bucket.forget_failures(keys)]
    screen.result(
        {"output": bucket.url, "clips": forgotten},
        f"{counted(len(forgotten), 'failed clip')} will be tried again by the next submit"
        + (f"; what they said is in {bucket.url}/history" if forgotten else ""),
    )
    return Exit.OK


def keep_failures(bucket: Bucket, keys: set[str]) -> None:
    """Copies the failures of these clips to `history/`, where no later submit looks. Raises BucketError."""
    failures = bucket.failures()
    numbered = [(key, number) for key in sorted(keys) for number in failures.get(key, ())]

    def keep(failure: tuple[str, int]) -> None:
        try:
            data = bucket.read(layout.failure(*failure))
        except FileNotFoundError:
            return  # another `retry` has kept and removed it since it was listed
        bucket.write(f"history/{failure[0]}.{failure[1]}.{_stamp(data)}.json", data)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(keep, numbered))


def _stamp(failure: bytes) -> str:
    try:
        document = json.loads(failure)
        return "".join(letter for letter in str(document["failed_at"]) if letter.isalnum())
    except (ValueError, KeyError, TypeError):
        return "damaged"
