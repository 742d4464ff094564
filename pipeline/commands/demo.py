"""`demo`: renders the manifest that ships with the program, with the model that does too. For who has no manifest yet."""

from __future__ import annotations

import argparse

from manifests.demo import DEMO_PARQUET
from pipeline.commands import submit
from pipeline.screen import Screen


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `demo`: `submit` of that manifest, on this machine unless --cluster says otherwise."""
    arguments.manifest = [str(DEMO_PARQUET)]
    arguments.cluster = arguments.cluster or "local"
    return submit.run(arguments, screen)
