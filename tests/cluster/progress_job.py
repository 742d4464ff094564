"""A job that only tells its progress: python -m tests.cluster.progress_job SCHEDULER_FILE NAME SECONDS_PER_CLIP CLIP...

It ends early, after the clip it is at, when its stdin is closed.
"""

from __future__ import annotations

import json
import logging
import pickle
import select
import sys
import time
from collections.abc import Callable

from cluster.dask_progress import DaskProgress


def main() -> None:
    logging.basicConfig(format="%(message)s")
    file, name, seconds, *clip_ids = sys.argv[1:]
    progress = pickle.loads(pickle.dumps(DaskProgress(scheduler_file=file)))
    calls, told = [], {}

    def timed(call: Callable[..., object], *args: object) -> float:
        begin = time.time()
        call(*args)
        calls.append(time.time() - begin)
        return begin

    with progress.open(name, clip_ids) as listener:
        for clip_id in clip_ids:
            start = timed(listener.started, clip_id)
            stop_now = bool(select.select([sys.stdin], [], [], float(seconds))[0])
            told[clip_id] = (start, timed(listener.finished, clip_id, "rendered", float(seconds)))
            if stop_now:
                break
        leaving = time.time()
    sys.stdout.write(json.dumps({"longest_call_s": max(calls), "exit_s": time.time() - leaving, "told": told}))


if __name__ == "__main__":
    main()
