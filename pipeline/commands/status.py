"""`status`: how far a run is, from its bucket alone. With --check, whether all that is recorded is whole."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from jobs.store.bucket import Bucket
from pipeline.run.damage import Damage, check_all
from pipeline.run.jobs_file import read_submits
from pipeline.run.run import load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import read_progress
from pipeline.run.summary import show_summary, tell_damages
from pipeline.screen import Screen, counted


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `status`: 0 when all clips are rendered, 3 when some failed, 1 when some are left, or damaged."""
    bucket = open_bucket(arguments.output)
    known, keys = load_run(bucket), run_keys(bucket)
    damages = _check(bucket, keys, screen) if arguments.check and keys is not None else None
    submits = list(read_submits(bucket))
    return show_summary(bucket, known, read_progress(bucket, keys), screen=screen, damages=damages, submits=submits)


def _check(bucket: Bucket, keys: Collection[str], screen: Screen) -> list[Damage]:
    def tell(done: int, total: int) -> None:
        screen.note(f"checking records and videos: {done:,} of {total:,}")

    damages = check_all(bucket, keys, tell=tell)
    if damages:
        screen.note(f"{counted(len(damages), 'object')} damaged; submit again to render their clips again:")
        tell_damages(damages, screen)
    else:
        screen.note("every record, video and job report is whole")
    return damages
