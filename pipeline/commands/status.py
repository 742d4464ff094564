"""`status`: how far a run is, from its bucket alone."""

from __future__ import annotations

import argparse

from pipeline.run.run import load_run, open_bucket
from pipeline.run.summary import show_summary
from pipeline.screen import Screen


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `status`: 0 when all clips are rendered, 3 when some failed, 1 when some are left."""
    bucket = open_bucket(arguments.output)
    return show_summary(bucket, load_run(bucket), screen=screen)
