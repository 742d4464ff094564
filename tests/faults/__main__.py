"""Makes random faults in real runs and checks the books of every run: python -m tests.faults --faults 200 --seed 1."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

from tests.cluster.daemons.processes import DaemonError
from tests.faults.kinds import ALL_KINDS
from tests.faults.rounds import Order, make_faults
from tests.faults.totals import Totals, load_totals
from tests.faults.world import World, open_world
from tests.pipeline.command import ROOT

_STOP_S = 60.0
_OF_A_WORLD = (DaemonError, OSError, subprocess.SubprocessError)
"""What ends a world: a daemon that does not come up, a server or a client that does not answer."""


class OpenWorld(Protocol):
    """Opens a world, and ends it."""

    def __call__(self, *, cluster: str) -> AbstractContextManager[World]: ...


def main(words: Sequence[str] | None = None, *, open_world: OpenWorld = open_world) -> int:
    """Carries out the command and returns its exit code: 1 if anything was wrong, or a world did not come to its end."""
    arguments = _parser().parse_args(words)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _stop)
    began, totals = time.monotonic(), Totals()
    try:
        if arguments.worlds == 1:
            _in_one_world(arguments, totals, open_world)
        else:
            _in_many_worlds(arguments, totals)
    finally:
        # Also when it is interrupted: what was found is told.
        if not arguments.part:
            sys.stdout.write(totals.table(time.monotonic() - began))
            sys.stdout.flush()
    return 0 if totals.is_clean else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many to make (default: 60)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="same seed, same order of faults (default: 1)")
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm")
    parser.add_argument(
        "--worlds", type=int, default=1, metavar="W", help="worlds side by side, with seeds S, S+1, ..."
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no run after this long (default: 120)")
    parser.add_argument(
        "--kinds", type=_kinds, default=ALL_KINDS, metavar="A,B", help=f"only these: {', '.join(ALL_KINDS)}"
    )
    parser.add_argument(
        "--logs", type=Path, default=ROOT / "runs" / "faults", metavar="FOLDER",
        help="keep the logs of runs there in which something was wrong (default: runs/faults)",
    )  # fmt: skip
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in ALL_KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(ALL_KINDS)}")
    return names


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    # An exit like any other: the daemons are stopped on the way out.
    sys.exit(128 + signum)


def _in_one_world(arguments: argparse.Namespace, totals: Totals, open_world: OpenWorld) -> None:
    order = Order(
        cluster=arguments.cluster,
        seed=arguments.seed,
        count=arguments.faults,
        minutes=arguments.minutes,
        kinds=arguments.kinds,
        logs=arguments.logs,
    )

    def keep(found: Totals) -> None:
        if arguments.part:
            found.save(arguments.part)

    try:
        with open_world(cluster=arguments.cluster) as world:
            make_faults(world, order, totals, keep=keep)
        totals.worlds += 1
    except _OF_A_WORLD as error:
        totals.dead.append(_dead(arguments.seed, repr(error)))
        sys.stderr.write(f"{totals.dead[-1]}\n")
    keep(totals)


def _dead(seed: int, why: str) -> str:
    return f"the world of seed {seed} did not start, or died: {why}"


def _in_many_worlds(arguments: argparse.Namespace, totals: Totals) -> None:
    # Much of a run is waiting (for SLURM, for a bucket that is away), which worlds can do side by side.
    with tempfile.TemporaryDirectory(prefix="pab-") as name:
        parts = {arguments.seed + index: Path(name) / str(index) for index in range(arguments.worlds)}
        with _children(arguments, parts) as children:
            for child in children.values():
                child.wait()
        for seed, part in parts.items():
            found = load_totals(part)
            if not found.worlds and not found.dead:
                found.dead.append(_dead(seed, f"its process ended with {children[seed].returncode}"))
            totals.add(found)


@contextmanager
def _children(arguments: argparse.Namespace, parts: dict[int, Path]) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    children: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for index, (seed, part) in enumerate(parts.items()):
            count = len(range(index, arguments.faults, arguments.worlds))
            children[seed] = _start_part(arguments, part, seed=seed, count=count)
        with contextlib.suppress(SystemExit):  # stopped: what the worlds have found so far is told
            yield children
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_S)


def _start_part(arguments: argparse.Namespace, part: Path, *, seed: int, count: int) -> subprocess.Popen[bytes]:
    words = {
        "faults": count, "seed": seed, "cluster": arguments.cluster, "minutes": arguments.minutes,
        "kinds": ",".join(arguments.kinds), "logs": arguments.logs, "part": part,
    }  # fmt: skip
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "tests.faults", *flags], cwd=ROOT, start_new_session=True)


if __name__ == "__main__":
    sys.exit(main())
