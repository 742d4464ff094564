"""Keeps a private SLURM and S3 server for a developer: python -m tests.cluster.daemons start|stop ROOT.

`start` prints, and writes to ROOT/env.sh, what a shell must source to use them.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from tests.cluster.daemons.ceph import Ceph
from tests.cluster.daemons.processes import DaemonError
from tests.cluster.daemons.slurm import Slurm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.daemons", description=__doc__)
    parser.add_argument("verb", choices=["start", "stop"])
    parser.add_argument("root", type=Path)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    slurm, ceph = Slurm(root / "slurm"), Ceph(root / "s3")
    begin = time.monotonic()
    try:
        if arguments.verb == "stop":
            stop(root, slurm=slurm, ceph=ceph)
        else:
            start(root, slurm=slurm, ceph=ceph)
    except DaemonError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"done in {time.monotonic() - begin:.1f} s\n")
    return 0


def start(root: Path, *, slurm: Slurm, ceph: Ceph) -> None:
    """Starts both and writes env.sh. Raises DaemonError if ROOT is in use."""
    if (root / "env.sh").exists():
        raise DaemonError(f"{root} holds daemons already; stop them first: python -m tests.cluster.daemons stop {root}")
    root.mkdir(parents=True, exist_ok=True)
    server = ceph.start()
    try:
        slurm.start()
    except BaseException:
        ceph.stop()
        raise
    variables = {"SLURM_CONF": slurm.environment["SLURM_CONF"], **server.environment}
    lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    (root / "env.sh").write_text(lines)
    sys.stdout.write(lines)


def stop(root: Path, *, slurm: Slurm, ceph: Ceph) -> None:
    """Stops both and removes what they left. Raises DaemonError if there is nothing at ROOT."""
    if not (root / "env.sh").exists():
        raise DaemonError(f"{root} holds no daemons (no env.sh in it)")
    slurm.stop()
    ceph.stop()
    for folder in (slurm.root, ceph.root):
        shutil.rmtree(folder)
    (root / "env.sh").unlink()


if __name__ == "__main__":
    sys.exit(main())
