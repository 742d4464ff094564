"""From the settings of a run to how a site's SLURM is asked: options, interpreter, container and what it sees."""

from __future__ import annotations

from pathlib import Path

from cluster.code_copy import CodeCopy
from cluster.environment import ROOT
from cluster.job import ClusterError
from cluster.slurm_launch import Container, Launch, Mount, python_problem, runtime_problem, setup_problem
from cluster.slurm_settings import SlurmSettings
from pipeline.exits import RefusedError, UsageError
from pipeline.run.job_code import code_copy
from pipeline.run.settings import MachineSettings, RunSettings

JOB_PACKAGES = ("submitit", "cloudpickle", "torch", "numpy", "pyarrow", "fsspec", "safetensors", "imageio_ffmpeg")
"""What the interpreter of a job needs for every family."""


def slurm_settings(settings: RunSettings, folder: Path, *, with_references: bool) -> SlurmSettings:
    """Returns what SLURM is asked with. `folder`: of the run's jobs, on this machine.

    `with_references`: whether the manifest names references, which jobs read again. Raises UsageError, ClusterError.
    """
    machines, code = settings.machines, code_copy(ship_code=settings.machines.ship_code)
    paths = container_paths(settings, folder, with_references=with_references, code=code)
    extra = dict(machines.slurm)
    cpus, mem, clusters = (extra.pop(name, None) for name in ("cpus-per-task", "mem", "clusters"))
    return SlurmSettings(
        partition=machines.partition,
        account=machines.account,
        qos=machines.qos,
        max_parallel_jobs=machines.max_parallel_jobs,
        cpus_per_task=_whole("cpus-per-task", cpus),
        mem=None if mem is None else str(mem),
        cluster=_name("clusters", clusters),
        comment=machines.comment,
        after=machines.after,
        launch=launch_of(machines, paths, code),
        extra=extra,
    )


def launch_of(machines: MachineSettings, paths: dict[str, bool], code: CodeCopy | None = None) -> Launch:
    """Returns how python begins. `paths`: what a container must see, and whether it only reads it. Raises ClusterError.

    `code`: the copy of the program that jobs run; None for the driver's own files.
    """
    if machines.container_image is None:
        return Launch(setup=machines.setup, python=machines.python, code=code)
    asked = [_mount(text) for text in machines.container_mounts]
    taken = {mount.target for mount in asked}
    own = [Mount(source=path, target=path, read_only=only) for path, only in paths.items() if path not in taken]
    container = Container(
        image=machines.container_image, runtime=machines.container_runtime, mounts=(*own, *asked)
    )  # fmt: skip
    return Launch(setup=machines.setup, python=machines.python, container=container, code=code)


def check_launch(launch: Launch, *, has_slurm: bool) -> None:
    """Looks at what can be seen from here; runs none of the user's lines. Raises UsageError, RefusedError, ClusterError."""
    if problem := setup_problem(launch.setup):
        raise UsageError(f"--setup: {problem}")
    path = Path(launch.python) if launch.python and "/" in launch.python and not launch.container else None
    if path and path.exists() and (problem := python_problem([str(path)], packages_of(launch))):
        raise UsageError(f"--python: {problem}")
    if launch.container and has_slurm and (problem := runtime_problem(launch.container.runtime)):
        raise RefusedError(f"--container-image {launch.container.image}: {problem}")


def packages_of(launch: Launch) -> tuple[str, ...]:
    """Returns what the interpreter of a job must find."""
    return (*JOB_PACKAGES, *(("pipeline",) if launch.needs_program else ()))


def container_paths(
    settings: RunSettings, folder: Path, *, with_references: bool, code: CodeCopy | None = None
) -> dict[str, bool]:
    """Returns the paths that a job uses on a file system, and whether it only reads them. None lies below another.

    `code`: the copy of the program that jobs run; None for the driver's own files.
    """
    render = settings.render
    written = [str(folder), settings.output, render.compile_cache]
    weights = [render.weights, *render.family_weights.values()]
    loras = [lora.place for each in render.loras.values() for lora in each]
    roots = render.reference_roots if with_references else ()
    read = [str(ROOT if code is None else code.place), *weights, *loras, *roots, render.c2pa_cert, render.c2pa_key]
    found = {path: False for path in written if path and path.startswith("/")}
    for path in read:
        if path and path.startswith("/"):
            found.setdefault(path, True)
    return {path: only for path, only in found.items() if not _is_seen(path, only, found)}


def _is_seen(path: str, only_read: bool, found: dict[str, bool]) -> bool:
    # Below another path that may be written too, or that is only read as this one is.
    return any(
        other != path and Path(path).is_relative_to(other) and (only_read or not found[other]) for other in found
    )


def _mount(text: str) -> Mount:
    path, _, rest = text.partition(":")
    target, _, flag = (path, "", rest) if rest == "ro" else rest.partition(":")
    if flag not in ("", "ro"):
        raise UsageError(f"--container-mount {text!r}: {flag!r} after the paths is not known, allowed: ro")
    try:
        return Mount(source=path, target=target or path, read_only=flag == "ro")
    except ClusterError as error:
        raise UsageError(f"--container-mount {text!r}: {error}") from error


def _name(name: str, value: str | bool | None) -> str | None:
    if value is True:
        raise UsageError(f"--slurm {name} needs a value, e.g. {name}=gpu2")
    return None if value is None else str(value)


def _whole(name: str, value: str | bool | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not value.isdigit() or int(value) < 1:
        raise UsageError(f"--slurm {name}={value}, needs a whole number of 1 or more")
    return int(value)
