"""`python -m pipeline`: hears signals from its first moment, and runs one command. All else is imported after that."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.interrupts import heed_end_signals, ignore_end_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Without `arguments` it is this process's program: it takes the words of the process, and its signals for good.
    """
    if arguments is None:
        heed_end_signals()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from pipeline.command_line import run_command

        return run_command(words)
    except KeyboardInterrupt:
        if arguments is None:
            ignore_end_signals()
        from pipeline.command_line import interrupted

        return interrupted(words)


if __name__ == "__main__":
    sys.exit(main())
