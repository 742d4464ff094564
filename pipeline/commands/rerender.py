"""`rerender`: puts records of rendered clips aside, so that the next submit renders these clips again."""

from __future__ import annotations

import argparse
import io
from collections.abc import Collection

import pyarrow.parquet as pq

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.exits import Exit, UsageError
from pipeline.run.damage import Damage, put_aside
from pipeline.run.run import load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import clip_id, keys_of, read_progress
from pipeline.run.where import matching, parse_where
from pipeline.screen import Screen, counted

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
    screen.result(
        {"output": bucket.url, "clips": clips},
        f"{counted(len(clips), 'rendered clip')} will be rendered again by the next submit"
        + (f"; the records are in {bucket.url}/history, and the videos stay until then" if clips else ""),
    )
    return Exit.OK


def _named(bucket: Bucket, names: Collection[str], recorded: Collection[str]) -> set[str]:
    rendered = {clip_id(key) for key in recorded}
    for name in names:
        if name not in rendered:
            raise UsageError(f"--clip {name}: no such clip is rendered; see: python -m pipeline status {bucket.url}")
    return keys_of(names, recorded)


def _where(bucket: Bucket, text: str, recorded: Collection[str], screen: Screen) -> set[str]:
    try:
        index = pq.ParquetFile(io.BytesIO(bucket.read(layout.INDEX)))
    except FileNotFoundError as error:
        report = f"python -m pipeline report {bucket.url}"
        raise UsageError(f"--where asks {layout.INDEX}, which is not there yet; first: {report}") from error
    conditions = parse_where(text, index.schema_arrow)
    asked = list(dict.fromkeys(each.column for each in conditions))
    known, keys = dict.fromkeys(asked, 0), set()
    for batch in index.iter_batches(columns=list(dict.fromkeys(["clip_id", "digest", *asked]))):
        # The index may be older than what is recorded now.
        rows = [row for row in batch.to_pylist() if f"{row['clip_id']}.{row['digest']}" in recorded]
        for name in asked:
            known[name] += sum(row[name] is not None for row in rows)
        keys |= {f"{row['clip_id']}.{row['digest']}" for row in matching(rows, conditions)}
    for name, count in known.items():
        if count < len(recorded):
            screen.note(f"{name} is known of {count:,} of {counted(len(recorded), 'rendered clip')}; the others stay")
    return keys
