"""How a job's python begins on the nodes of a site: lines of shell before it, which interpreter, in which container."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.code_copy import CodeCopy
from cluster.environment import ROOT, is_installed
from cluster.job import ClusterError
from cluster.slurm_clients import ask_slurm

PYXIS = "pyxis"
MIN_PYTHON = (3, 11)
_CHECK_S = 60
_LOOK = """
import importlib.util, json, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(json.dumps([list(sys.version_info[:2]), missing]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A path of the node that a container sees under the name `target`."""

    source: str
    target: str
    read_only: bool = False

    def __post_init__(self) -> None:
        for path in (self.source, self.target):
            if not path.startswith("/") or not path.isprintable() or re.search(r"[,:]", path):
                raise ClusterError(
                    f"{path!r} cannot be mounted into a container: a mount needs an absolute path without ':' and ','"
                )

    def __str__(self) -> str:
        return f"{self.source}:{self.target}{':ro' if self.read_only else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Where a job's ranks run. `runtime`: pyxis (srun's own options), or the program that is put before python."""

    image: str
    runtime: str = PYXIS
    mounts: tuple[Mount, ...] = ()

    def __post_init__(self) -> None:
        if not self.image or not self.image.isprintable() or self.image.startswith("-"):
            raise ClusterError(f"container image {self.image!r}: needs the name or path of an image, in one line")

    @property
    def srun_args(self) -> list[str]:
        """What srun is told of it."""
        if self.runtime != PYXIS:
            return []
        mounts = [f"--container-mounts={','.join(map(str, self.mounts))}"] if self.mounts else []
        return [f"--container-image={self.image}", *mounts]

    def prefix(self, *, with_gpus: bool) -> list[str]:
        """Returns the words before the interpreter."""
        if self.runtime == PYXIS:
            return []
        binds = [word for mount in self.mounts for word in ("--bind", str(mount))]
        return [self.runtime, "exec", *(["--nv"] if with_gpus else []), *binds, self.image]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a site wants python to be started. `setup`: text of bash, which runs before it on a job's first node.

    `python`: a path, or a name that is looked up on the node; None for this interpreter, in a container for `python3`.
    `code`: the copy of the program that jobs run; None for the driver's own files.
    """

    setup: tuple[str, ...] = ()
    python: str | None = None
    container: Container | None = None
    code: CodeCopy | None = None

    def __post_init__(self) -> None:
        if self.python is not None and (not self.python.isprintable() or not self.python or self.python[0] in "-~"):
            raise ClusterError(f"python {self.python!r}: needs the path or the name of an interpreter, in one line")
        if any("\0" in text for text in self.setup):
            raise ClusterError("a line of setup has a character 0, which no script can hold")

    @property
    def is_plain(self) -> bool:
        """Whether jobs run in the interpreter that submits."""
        return self.python is None and self.container is None

    @property
    def setup_lines(self) -> list[str]:
        """The lines of a job's script that hold the user's.

        A command comes first: after it sbatch reads no options, whatever a user's line looks like. Of a line that fails the
        job's error output tells; what it means for the job is not known here.
        """
        if not self.setup:
            return []
        told = '"--setup: line $LINENO of the script of this job ended with status $?"'
        # The empty line ends one that the user's last backslash would continue.
        return [f"trap 'echo {told} >&2' ERR", *self.setup, "", "trap - ERR"]

    def words(self, *, with_gpus: bool) -> list[str]:
        """Returns the words that start the interpreter."""
        prefix = self.container.prefix(with_gpus=with_gpus) if self.container else []
        return [*prefix, self.python or ("python3" if self.container else sys.executable)]

    @property
    def needs_program(self) -> bool:
        """Whether the interpreter must have our packages itself: those here lie among others, which are not for it."""
        return self.code is None and is_installed() and not self.is_plain

    @property
    def search_path(self) -> Path | None:
        """Where the interpreter finds our packages; None if it must have them itself."""
        if self.code is not None:
            return self.code.place
        return None if self.needs_program else ROOT


def setup_problem(setup: Sequence[str]) -> str | None:
    """Says what bash does not understand in lines of setup, without running any; None if all is well."""
    bash = shutil.which("bash")
    if not setup or bash is None:
        return None
    read = subprocess.run(
        [bash, "-n"], input="\n".join([*setup, ""]), capture_output=True, text=True, timeout=_CHECK_S, check=False
    )
    # Of a here-document without an end it only warns.
    said = read.stderr.strip()
    return f"bash does not understand the lines of --setup: {said}" if read.returncode or said else None


def runtime_problem(runtime: str) -> str | None:
    """Says that srun here does not know pyxis; None if it does, or if the runtime is a program of the nodes."""
    if runtime != PYXIS or "--container-image" in ask_slurm("srun", "--help"):
        return None
    return (
        "srun has no option --container-image, so the plugin pyxis is not installed here; with --container-runtime apptainer "
        "a container is begun by a program of the nodes"
    )


def python_problem(python: Sequence[str], packages: Sequence[str], *, setup: Sequence[str] = ()) -> str | None:
    """Says why an interpreter of this machine cannot run jobs; None if it can.

    `python`: the words that start it. `packages`: what it must find. `setup`: lines of bash that run before.
    """
    name, words = shlex.join(python), [*python, "-c", _LOOK, *packages]
    if setup:
        words = ["bash", "-c", "\n".join([*setup, "", f"exec {shlex.join(words)}"])]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=_CHECK_S, check=False)
        version, missing = json.loads(ran.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{name} cannot be run: {error}"
    except (ValueError, TypeError, IndexError):
        return f"{name} does not answer as Python does: {(ran.stderr or ran.stdout).strip()[-300:]}"
    if tuple(version) < MIN_PYTHON:
        return f"{name} is {'.'.join(map(str, version))}, needs {'.'.join(map(str, MIN_PYTHON))} or newer"
    return f"{name} has no {', '.join(missing)}; install what is missing there" if missing else None
