"""`rerender`: puts records of rendered clips aside, so that the next submit renders these clips again."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, UsageError
from pipeline.run.claims import seen_drivers
from pipeline.run.damage import Damage, put_aside
from pipeline.run.report_where import find_where
from pipeline.run.run import load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import clip_id, keys_of, read_progress
from pipeline.screen import Screen, counted, own_command

WHY = "it is to be rendered again"


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `rerender`."""
    bucket = open_bucket(arguments.output)
    load_run(bucket)
    recorded = read_progress(bucket, run_keys(bucket)).recorded
    if arguments.where is None:
        keys = _named(bucket, arguments.clip, recorded)
    else:
        keys = _where(bucket, arguments.where, recorded, screen)
    put_aside(bucket, [Damage(path=layout.record(key), what=WHY, key=key) for key in sorted(keys)])
    clips = sorted(map(clip_id, keys))
    # A job that lives renders what has no record, so it may well not be the next submit.
    drivers = seen_drivers(bucket)
    by = f"the submit that is at work ({', '.join(drivers)}), or else by the next one" if drivers else "the next submit"
    screen.result(
        {"output": bucket.url, "clips": clips},
        f"{counted(len(clips), 'rendered clip')} will be rendered again by {by}"
        + (f"; the records are in {bucket.url}/history, and the videos stay until then" if clips else ""),
    )
    return Exit.OK


def _named(bucket: Bucket, names: Collection[str], recorded: Collection[str]) -> set[str]:
    rendered = {clip_id(key) for key in recorded}
    for name in names:
        if name not in rendered:
            raise UsageError(f"--clip {name}: no such clip is rendered; see: {own_command('status', bucket.url)}")
    return keys_of(names, recorded)


def _where(bucket: Bucket, text: str, recorded: Collection[str], screen: Screen) -> set[str]:
    try:
        index = bucket.read(layout.INDEX)
    except FileNotFoundError as error:
        report = own_command("report", bucket.url)
        raise UsageError(f"--where asks {layout.INDEX}, which is not there yet; first: {report}") from error
    keys, known = find_where(index, text, recorded)
    for name, count in known.items():
        if count < len(recorded):
            screen.note(f"{name} is known of {count:,} of {counted(len(recorded), 'rendered clip')}; the others stay")
    return keys
