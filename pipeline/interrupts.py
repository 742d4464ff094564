"""How a command is told to end: SIGTERM is answered as Ctrl-C is. Nothing but `signal` is imported, so this comes first."""

from __future__ import annotations

import signal
from types import FrameType

_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedByError(KeyboardInterrupt):
    """A signal asks the command to end.

    A class of its own: when KeyboardInterrupt itself passes through an `exec`, such as that of a dataclass, Python
    remembers it as unhandled, and ends by SIGINT in place of the exit code, although it was handled.
    """


def heed_end_signals() -> None:
    """From here on SIGTERM and SIGINT raise KeyboardInterrupt, and neither is blocked. For the main thread alone.

    SIGINT stays ignored where the parent ignored it: a shell does so for what a script starts with `&`, so that Ctrl-C
    only ends what stands in front. SIGHUP stays as it is, for nohup.
    """
    interrupt = _Interrupt()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)


def ignore_end_signals() -> None:
    """Lets nothing cut short what an interruption has begun: `timeout` and `make` both pass a signal on, so two arrive."""
    for signum in _END_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def interrupt_if_asked() -> None:
    """Raises KeyboardInterrupt if a signal has asked for it before, and a library has lost that.

    pyarrow, for one, drops whatever is raised while it looks for pandas. So this is called before long work begins.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _Interrupt) and handler.asked:
        raise InterruptedByError


class _Interrupt:
    """The handler; it knows whether a signal has come."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        self.asked = True
        raise InterruptedByError(signal.Signals(signum).name)
