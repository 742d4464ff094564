"""Finds the command, runs it, and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jobs.log import LogfmtFormatter
from pipeline.exits import CommandError, Exit, check_names, unusable_name
from pipeline.parser import build_parser
from pipeline.screen import Screen

COMMANDS = {
    "submit": "pipeline.commands.submit",
    "demo": "pipeline.commands.demo",
    "status": "pipeline.commands.status",
    "watch": "pipeline.commands.watch",
    "report": "pipeline.commands.report",
    "retry": "pipeline.commands.retry",
    "rerender": "pipeline.commands.rerender",
    "cancel": "pipeline.commands.cancel",
    "logs": "pipeline.commands.logs",
    "runs": "pipeline.commands.runs",
    "export": "pipeline.commands.export",
    "verify": "pipeline.commands.verify",
    "manifest": "pipeline.commands.manifest",
    "bench": "pipeline.commands.bench",
    "calibrate": "pipeline.commands.calibrate",
    "doctor": "pipeline.commands.doctor",
}
"""Command -> module whose `run(arguments, screen)` carries it out; imported only when it is asked for."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_command(words: Sequence[str]) -> int:
    """Runs one command and returns its exit code. KeyboardInterrupt passes: see `interrupted`."""
    screen = _screen(words)
    _log_to_stderr()
    try:
        parsed = build_parser().parse_args(words)
        check_names([*words, _here()])
        return int(importlib.import_module(COMMANDS[parsed.command]).run(parsed, screen))
    except BrokenPipeError:
        # Whoever read our output (`| head`) has gone: there is nobody to tell, and flushing at exit must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # the process's top: whatever it is, `--json` promises one object and an exit code
        exit_code = _exit_code(error)
        if exit_code is None and isinstance(error, UnicodeEncodeError) and (why := unusable_name(error.object)):
            screen.error("UsageError", why, Exit.USAGE)
            return Exit.USAGE
        if exit_code is None and isinstance(error, OSError) and error.errno in _NO_ROOM:
            screen.error(type(error).__name__, _no_room(error), Exit.ERROR)
            return Exit.ERROR
        if exit_code is None:
            screen.note(traceback.format_exc())
            exit_code = Exit.ERROR
        screen.error(type(error).__name__, str(error) or repr(error), exit_code)
        return exit_code


def interrupted(words: Sequence[str]) -> int:
    """Says that the command was interrupted and returns the exit code for it."""
    _screen(words).error("interrupted", "interrupted", Exit.INTERRUPTED)
    return Exit.INTERRUPTED


def _screen(words: Sequence[str]) -> Screen:
    return Screen(as_json="--json" in words)


def _here() -> str:
    # Paths are made absolute by it, so its letters count too.
    with suppress(OSError):
        return str(Path.cwd())
    return ""


def _no_room(error: OSError) -> str:
    place = error.filename if isinstance(error.filename, str) else "a disk"
    return (
        f"{place}: {os.strerror(error.errno or 0)}; make room there, in the current folder and in {tempfile.gettempdir()} "
        "(or set TMPDIR), or raise the limit of this shell (ulimit -f), and try again"
    )


def _log_to_stderr() -> None:
    # Without a handler a warning is printed without its fields: "bucket_retry", and not of what.
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.WARNING)
        handler.setFormatter(LogfmtFormatter({}))
        root.addHandler(handler)
        # A library's warning may quote a manifest: it goes the same way.
        logging.captureWarnings(capture=True)


def _exit_code(error: Exception) -> Exit | None:
    # Imported here: by the time there is such an error, its module is loaded already.
    from cluster.job import ClusterError
    from jobs.store.bucket import BucketError
    from manifests.errors import ManifestError

    if isinstance(error, CommandError):
        return error.exit_code
    if isinstance(error, ManifestError):
        return Exit.MANIFEST_INVALID
    if isinstance(error, ClusterError | BucketError):
        return Exit.REFUSED
    return None
