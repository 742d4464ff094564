"""A job's process ends when it is told to, whatever the driver inherited of signals.

A shell starts what a script ends with `&` with SIGINT ignored, a launcher may block or ignore others, and every child
inherits both. submitit makes its ranks ignore SIGTERM until the job's loop takes it.
"""

from __future__ import annotations

import signal


def end_on_signals() -> None:
    """From here on SIGINT raises KeyboardInterrupt and SIGTERM ends this process, and so they do in its children.

    For the main thread alone. SIGHUP stays ignored where it is: a run under nohup outlives its terminal.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2))
