"""`watch`: the status, again and again, until every clip has ended."""

from __future__ import annotations

import argparse
import sys
import time

from pipeline.exits import Exit
from pipeline.run.display import Snapshot, open_display
from pipeline.run.run import load_run, open_bucket
from pipeline.run.run_keys import run_keys
from pipeline.run.state import read_progress
from pipeline.run.summary import show_summary
from pipeline.screen import Screen


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `watch`: shows progress until no clip is left, then the summary. Ctrl-C ends the watching only."""
    bucket = open_bucket(arguments.output)
    known, keys = load_run(bucket), run_keys(bucket)
    began, before = time.monotonic(), None
    try:
        with open_display() as display:
            while True:
                progress = read_progress(bucket, keys)
                before = len(progress.recorded) if before is None else before
                snapshot = Snapshot(
                    num_clips=known.num_clips,
                    rendered=len(progress.recorded),
                    failed=len(progress.not_rendered),
                    started=len(progress.started),
                    new=len(progress.recorded) - before,
                    elapsed_s=time.monotonic() - began,
                )
                display.update(snapshot)
                if snapshot.rendered + snapshot.failed >= snapshot.num_clips:
                    break
                time.sleep(arguments.interval)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        show_summary(bucket, known, read_progress(bucket, keys), screen=screen)
        return Exit.INTERRUPTED
    return show_summary(bucket, known, read_progress(bucket, keys), screen=screen)
