"""`doctor`: checks what a run needs of this machine, says what each finding means, and how to mend it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor_checks import Check, bucket_check, machine_checks, weights_check
from pipeline.commands.doctor_site import site_checks
from pipeline.exits import Exit
from pipeline.run.environment import environment_settings
from pipeline.run.options import choose
from pipeline.run.run import versions
from pipeline.screen import Screen


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `doctor`: 1 when something that every run needs is missing, else 0."""
    checks = list(_checks(arguments))
    text = "\n".join(_lines(check) for check in checks)
    needed = [check for check in checks if check.verdict == "missing"]
    text += "\n" + (f"{len(needed)} to mend" if needed else "ready to render")
    document: dict[str, object] = {
        "checks": [
            {"name": check.name, "verdict": check.verdict, "found": check.found, "mend": check.mend} for check in checks
        ],
        "versions": versions(),
    }
    screen.result(document, text)
    return Exit.ERROR if needed else Exit.OK


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    yield from machine_checks()
    for given in arguments.weights or [None]:
        name, equals, folder = (given or "").partition("=")
        named = bool(equals) and not Path(given or "").exists()
        yield weights_check(name if named else arguments.model, folder if named else given)
    yield from site_checks(choose(vars(arguments), environment_settings()))
    if arguments.output:
        yield bucket_check(arguments.output)


def _lines(check: Check) -> str:
    line = f"{check.verdict:<8} {check.name:<10} {check.found}"
    return f"{line}\n{'':<20}{check.mend}" if check.mend else line
