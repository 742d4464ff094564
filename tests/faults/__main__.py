"""Makes random faults in real runs and checks the books of every run: python -m tests.faults --faults 200 --seed 1."""

from __future__ import annotations

import argparse
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.cluster.daemons.processes import DaemonError
from tests.faults.rounds import make_faults
from tests.faults.totals import Totals
from tests.faults.world import open_world
from tests.pipeline.command import ROOT

_STOP_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many to make (default: 60)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="same seed, same order of faults (default: 1)")
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm")
    parser.add_argument(
        "--worlds", type=int, default=1, metavar="W", help="worlds side by side, with seeds S, S+1, ..."
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no run after this long (default: 120)")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _stop)
    began = time.monotonic()
    try:
        totals = _in_one_world(arguments) if arguments.worlds == 1 else _in_many_worlds(arguments)
    except DaemonError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if arguments.part:
        arguments.part.write_bytes(pickle.dumps(totals))
    else:
        sys.stdout.write(totals.table(time.monotonic() - began))
    return 0 if totals.is_clean else 1


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    # An exit like any other: the daemons are stopped on the way out.
    sys.exit(128 + signum)


def _in_one_world(arguments: argparse.Namespace) -> Totals:
    with open_world(cluster=arguments.cluster) as world:
        return make_faults(
            world,
            cluster=arguments.cluster,
            seed=arguments.seed,
            count=arguments.faults,
            minutes=arguments.minutes,
        )


def _in_many_worlds(arguments: argparse.Namespace) -> Totals:
    # Much of a run is waiting (for SLURM, for a bucket that is away), which worlds can do side by side.
    totals = Totals()
    with tempfile.TemporaryDirectory(prefix="pab-") as name:
        parts = [Path(name) / str(index) for index in range(arguments.worlds)]
        children: list[subprocess.Popen[bytes]] = []
        try:
            for index, part in enumerate(parts):
                count = len(range(index, arguments.faults, arguments.worlds))
                children.append(_start_part(arguments, part, seed=arguments.seed + index, count=count))
            for child in children:
                child.wait()
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(_STOP_S)
        for part in parts:
            if not part.exists():
                raise DaemonError(f"the world of seed {arguments.seed + int(part.name)} ended without its totals")
            totals.add(pickle.loads(part.read_bytes()))
    return totals


def _start_part(arguments: argparse.Namespace, part: Path, *, seed: int, count: int) -> subprocess.Popen[bytes]:
    words = {"faults": count, "seed": seed, "cluster": arguments.cluster, "minutes": arguments.minutes, "part": part}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "tests.faults", *flags], cwd=ROOT, start_new_session=True)


if __name__ == "__main__":
    sys.exit(main())
