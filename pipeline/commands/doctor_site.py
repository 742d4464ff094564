"""The checks of `doctor` about how jobs begin at a site: lines of setup, interpreter, container. Made here, not on a node."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.job import ClusterError
from cluster.slurm_launch import PYXIS, Container, Launch, python_problem, runtime_problem, setup_problem
from pipeline.commands.doctor_checks import MISSING, NOTE, OK, Check
from pipeline.run.job_code import code_copy
from pipeline.run.options import Chosen
from pipeline.run.sites import packages_of

_SETUP_S = 60
_HERE = "this looks at this machine, and the nodes may differ"


def site_checks(chosen: Mapping[str, Chosen]) -> Iterator[Check]:
    """Yields what this machine says of --setup, --python and --container-image, as far as they are given."""
    setup, python, image = (chosen[name].value for name in ("setup", "python", "container_image"))
    try:
        container = Container(image=str(image), runtime=str(chosen["container_runtime"].value)) if image else None
        launch = Launch(
            setup=tuple(setup) if isinstance(setup, tuple) else (), python=str(python) if python else None,
            container=container, code=code_copy(ship_code=bool(chosen["ship_code"].value)),
        )  # fmt: skip
    except ClusterError as error:
        yield Check(name="launch", verdict=MISSING, found=str(error), mend="mend the flag")
        return
    if launch.setup:
        yield _setup_check(launch)
    if launch.container:
        yield _container_check(launch.container)
    if (launch.python or launch.container) and not setup_problem(launch.setup):
        yield from _python_checks(launch)


def _setup_check(launch: Launch) -> Check:
    if problem := setup_problem(launch.setup):
        return Check(name="setup", verdict=MISSING, found=problem, mend="mend --setup")
    try:
        ran = subprocess.run(
            ["bash", "-c", "\n".join(launch.setup_lines)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SETUP_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name="setup", verdict=NOTE, found=f"cannot be run here: {error}", mend=_HERE)
    said = " ".join(ran.stderr.split())[-300:]
    if ran.returncode or said:
        return Check(
            name="setup", verdict=NOTE, found=f"here it says: {said or f'ended with status {ran.returncode}'}",
            mend=f"{_HERE}; where `module` is not known, a line such as --setup 'source /etc/profile' comes first",
        )  # fmt: skip
    return Check(name="setup", verdict=OK, found=f"runs here without a word ({len(launch.setup)} given)")


def _container_check(container: Container) -> Check:
    if container.runtime == PYXIS:
        try:
            problem = runtime_problem(PYXIS)
        except ClusterError as error:
            return Check(name="container", verdict=NOTE, found=str(error), mend="ask again on a login node")
        if problem:
            return Check(name="container", verdict=MISSING, found=problem, mend="ask the site, or take that runtime")
        return Check(name="container", verdict=OK, found="srun knows pyxis; the image is looked for by the jobs")
    if shutil.which(container.runtime) is None:
        return Check(name="container", verdict=NOTE, found=f"no {container.runtime} here", mend=_HERE)
    if container.image.startswith("/") and not Path(container.image).exists():
        return Check(name="container", verdict=NOTE, found=f"{container.image} is not here", mend=_HERE)
    return Check(name="container", verdict=OK, found=f"{container.runtime} is here, for {container.image}")


def _python_checks(launch: Launch) -> Iterator[Check]:
    words = launch.words(with_gpus=False)
    if launch.container and (launch.container.runtime == PYXIS or not _is_here(words[0])):
        return  # only a job can look into it
    if problem := python_problem(words, packages_of(launch), setup=launch.setup):
        there = _is_here(words[0])
        yield Check(name="job python", verdict=MISSING if there else NOTE, found=problem, mend="" if there else _HERE)
        return
    yield Check(name="job python", verdict=OK, found=f"{' '.join(words)} has what jobs need")


def _is_here(program: str) -> bool:
    return os.access(program, os.X_OK) if "/" in program else shutil.which(program) is not None
