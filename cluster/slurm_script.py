"""The sbatch script of an array, and the pickles that its jobs load."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission

from cluster.environment import SAFE_PATH
from cluster.job import ClusterError, JobRequest
from cluster.rank import REQUEUE_MARK, RankCall
from cluster.slurm_settings import SlurmSettings
from cluster.whole_files import write_whole

_AFTER_FIRST_EXIT_S = 300
_GPU_OPTIONS = {"gpus", "gpus-per-node", "gpus-per-task", "gres"}
SCRIPT = "array.sh"
_OPTION = "#SBATCH "
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./\[\]-]*")
_MAX_TIMEOUTS = 3
"""For submitit's handler of signals, until ours replaces it (`cluster/rank.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What jobs of one array have in common."""

    num_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    timeout_min: int
    avoid_nodes: frozenset[str]
    is_restart: bool


def shape_of(request: JobRequest) -> Shape:
    """Returns a job's shape."""
    return Shape(
        num_nodes=request.num_nodes,
        ranks_per_node=request.ranks_per_node,
        gpus_per_node=request.gpus_per_node,
        timeout_min=request.timeout_min,
        avoid_nodes=request.avoid_nodes,
        is_restart=request.is_restart,
    )


def array_script(
    settings: SlurmSettings, shape: Shape, *, folder: Path, job_name: str, num_jobs: int = 1, after: str | None = None
) -> str:
    """Returns the script of an array of `num_jobs` jobs. `after`: the id of an array that must have ended before.

    Raises ClusterError for what cannot stand in one.
    """
    if not str(folder).isprintable():
        raise ClusterError(f"{str(folder)!r} stands in scripts: it must not hold line breaks or control characters")
    extra = dict(settings.extra)
    has_gpus = bool(shape.gpus_per_node or extra.keys() & _GPU_OPTIONS)
    executor = _ScriptWriter(folder, python=shlex.join(settings.launch.words(with_gpus=has_gpus)))
    srun_args = ["--kill-on-bad-exit=1", f"--wait={_AFTER_FIRST_EXIT_S}"]
    if settings.cpus_per_task:
        # Since 22.05 srun no longer takes it from sbatch.
        srun_args.append(f"--cpus-per-task={settings.cpus_per_task}")
    container = settings.launch.container
    srun_args += container.srun_args if container else []
    marks = _requeue_outside(folder)
    options: dict[str, str | bool] = {"requeue": True, **settings.named_options(), **extra}
    options.pop("dependency", None)
    if dependency := settings.dependency(is_restart=shape.is_restart, after_array=after):
        options["dependency"] = dependency
    if shape.avoid_nodes:
        options["exclude"] = _joined(extra.get("exclude"), *sorted(shape.avoid_nodes))
    executor.update_parameters(
        job_name=job_name,
        time=shape.timeout_min,
        nodes=shape.num_nodes,
        ntasks_per_node=shape.ranks_per_node,
        gpus_per_node=shape.gpus_per_node if shape.gpus_per_node and not extra.keys() & _GPU_OPTIONS else None,
        cpus_per_task=settings.cpus_per_task,
        signal_delay_s=min(settings.signal_delay_s, shape.timeout_min * 60 // 4),
        srun_args=srun_args,
        setup=[
            *settings.launch.setup_lines,
            *_setup(settings),
            *_own_pickle(folder),
            *(marks[:1] if container else []),
        ],
        teardown=marks[1:] if container else None,
        wckey=None,
        additional_parameters=options,
    )
    if num_jobs > 1:
        executor.parameters.update(map_count=num_jobs, array_parallelism=settings.max_parallel_jobs or num_jobs)
    return _quoted_for_sbatch(str(executor._make_submission_file_text(executor._submitit_command_str, "")))


def _quoted_for_sbatch(script: str) -> str:
    # submitit quotes options for a shell. sbatch reads them by rules of its own: it takes a backslash for an escape between
    # any quotes, so a text that has one would end the option, and begin another.
    head, setup, rest = script.partition("\n# setup\n")
    lines = [_option(line) if line.startswith(_OPTION) else line for line in head.split("\n")]
    return "\n".join(lines) + setup + rest


def _option(line: str) -> str:
    (word,) = shlex.split(line.removeprefix(_OPTION))
    name, equals, value = word.partition("=")
    if not _PLAIN.fullmatch(value):
        value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return f"{_OPTION}{name}{equals}{value}"


class _ScriptWriter(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """Writes scripts also on machines without SLURM, for a dry run."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def write_array(settings: SlurmSettings, requests: Sequence[JobRequest], *, folder: Path, script: str) -> Path:
    """Writes what an array needs, the code too, and returns its script's path. Raises ClusterError for a full disk."""
    if settings.launch.code is not None:
        settings.launch.code.make()
    try:
        for index, request in enumerate(requests):
            call = DelayedSubmission(RankCall(call=request.call, max_requeues=settings.max_requeues))
            call.set_timeout(request.timeout_min, _MAX_TIMEOUTS)
            call.dump(folder / _pickle(str(index)))
        path = folder / SCRIPT
        write_whole(path, script.encode())
    except OSError as error:
        raise ClusterError(f"cannot write the jobs into {folder}: {error}; make room there") from error
    return path


def _own_pickle(folder: Path) -> list[str]:
    # submitit looks for a name with the job's id, which nobody knows before sbatch has answered. The job makes that name
    # itself, so it runs even if the answer never came.
    return [
        'pab_id="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        f'ln -sf "{_pickle("${SLURM_ARRAY_TASK_ID:-0}")}" {shlex.quote(str(folder))}/"$pab_id"_submitted.pkl',
    ]


def _pickle(task: str) -> str:
    return f"task-{task}.pkl"


def _joined(theirs: str | bool | None, *ours: str) -> str:
    return ",".join([*([str(theirs)] if theirs else []), *ours])


def _setup(settings: SlurmSettings) -> list[str]:
    lines = []
    if root := settings.launch.search_path:
        lines.append(f'export PYTHONPATH={shlex.quote(str(root))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines.append(f"export {SAFE_PATH}=1")
    if settings.cpus_per_task:
        lines.append(f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{settings.cpus_per_task}}}"')
    if settings.cluster:
        # It came with the driver's environment. The job asks the cluster that it is in.
        lines.append("unset SLURM_CLUSTERS")
    return lines


def _requeue_outside(folder: Path) -> list[str]:
    # In a container there is no scontrol. The rank leaves a file instead (`cluster/rank.py`). The first line is for before
    # srun: such a file of an earlier start, whose node fell, says nothing of this one.
    mark = f'{shlex.quote(str(folder))}/"$pab_id"{REQUEUE_MARK}'
    return [
        f"rm -f {mark}",
        "pab_status=$?",
        f'if [ -e {mark} ]; then rm {mark}; scontrol requeue "$pab_id"; fi',
        'exit "$pab_status"',
    ]


def names_of(requests: Sequence[JobRequest]) -> tuple[str, ...]:
    """Returns the names of jobs, in order."""
    return tuple(request.name for request in requests)


def arrays(requests: Sequence[JobRequest], size: int) -> Iterator[list[JobRequest]]:
    """Cuts the requests, in order, into runs of one shape of at most `size`."""
    array: list[JobRequest] = []
    for request in requests:
        if array and (len(array) == size or shape_of(request) != shape_of(array[0])):
            yield array
            array = []
        array.append(request)
    if array:
        yield array
