"""What runs on every rank around the caller's function: removes old results, ends with its job, requeues the job."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import submitit

from cluster.end_signals import end_on_signals
from cluster.environment import restart_count
from cluster.pickled import FormatError, seal, unseal

_LOG = logging.getLogger(__name__)
_WATCH_S = 0.5
REQUEUE_MARK = "_requeue"
"""Ends the name of a file, after the job's id, by which a rank without scontrol asks the job's script to requeue it."""


def rank_result(*, attempt: int, value: object) -> dict[str, object]:
    """Returns what a rank writes as its result: the value, and the number of the job's start. Only rank 0 has a value."""
    return seal(value) | {"attempt": attempt}


class RankCall:
    """The callable that submitit pickles for a job; it runs `call` on one rank. Queued jobs name it, so it must not move.

    `max_requeues`: how often the job requeues itself in SLURM at its time limit or a preemption.
    """

    def __init__(self, *, call: Callable[[], object], max_requeues: int = 0) -> None:
        self._job = seal(call) | {"max_requeues": max_requeues}

    def __getstate__(self) -> dict[str, object]:
        return self._job

    def __setstate__(self, state: object) -> None:
        # In format 1 this was a dataclass, whose state is a list of its fields.
        self._job = state if isinstance(state, dict) else {"format": 1}

    def __call__(self) -> dict[str, object]:
        """Runs the call and returns its `rank_result`. If another version queued the job, ends the process with a message."""
        # submitit has just made SIGTERM do nothing: a job cancelled while it loads would begin a clip and be killed in it.
        end_on_signals()
        environment = submitit.JobEnvironment()
        attempt = restart_count()
        _drop_old_result(environment)
        if environment.cluster != "local" and "max_requeues" in self._job:
            # Before the call is loaded, which imports for seconds: a short job is warned of its end early.
            _requeue_on_usr2(environment, attempt=attempt, max_requeues=int(str(self._job["max_requeues"])))
        try:
            call = unseal(self._job)
        except FormatError as error:
            sys.exit(
                f"job {environment.job_id} was queued by another version of the program ({error}); end the driver that "
                "queued it and submit the run again: what is recorded stays"
            )
        assert callable(call), f"a job calls {call!r}"
        if environment.cluster == "local":
            _die_with(int(environment.job_id))
        value = call()
        return rank_result(attempt=attempt, value=value if environment.global_rank == 0 else None)


def _drop_old_result(environment: submitit.JobEnvironment) -> None:
    # A requeued job may find this rank's result from its earlier start. A complete one would be taken for the new result; a
    # half-written one makes submitit refuse to write.
    result = environment.paths.result_pickle
    result.unlink(missing_ok=True)
    result.with_suffix(result.suffix + ".save_tmp").unlink(missing_ok=True)


def _die_with(parent_pid: int) -> None:
    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_WATCH_S)
        # Each rank leads its own process group, so this also kills its children (ffmpeg, data loaders).
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _requeue_on_usr2(environment: submitit.JobEnvironment, *, attempt: int, max_requeues: int) -> None:
    # submitit's handler guesses from the wall time whether it is a timeout or a preemption, pickles the function again, and
    # can be killed by the requeue that it asks for. All state is in the bucket, so the first pickle works for every start.
    def requeue(_signum: int, _frame: FrameType | None) -> None:
        if environment.global_rank != 0:
            return
        if attempt >= max_requeues:
            _LOG.error("job %s: started %d times, not requeued again", environment.job_id, attempt + 1)
            sys.exit(1)
        _LOG.warning("job %s: out of time or preempted, requeueing", environment.job_id)
        # SLURM signals the whole step while `scontrol requeue` still runs in it. Signals ignored here are also ignored there.
        for ending in (signal.SIGTERM, signal.SIGCONT):
            signal.signal(ending, signal.SIG_IGN)
        try:
            subprocess.run(["scontrol", "requeue", environment.job_id], timeout=60, check=True)
        except FileNotFoundError:  # in a container
            (environment.paths.folder / f"{environment.job_id}{REQUEUE_MARK}").touch()
        sys.exit(1)

    signal.signal(signal.SIGUSR2, requeue)
