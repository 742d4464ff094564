"""The settings tree of a run. It is saved in run.json, and its parts are handed to the code that needs them.

A setting is stated once: as a field of `jobs.render_settings.RenderSettings` if jobs follow it, else here, as a field of
`MachineSettings`. `options.py` makes its flag, variable, key of a --config file and line in --help from the field. `build.py`
fills in what depends on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from jobs.render_settings import RenderSettings
from jobs.setting import Setting, number_reader
from jobs.settings import JobSettings, Mesh
from jobs.version import program
from pab.weights.lora import Lora
from pipeline.exits import UsageError
from pipeline.signals.notify import FAILED_SHARE, read_share
from pipeline.signals.otlp import read_otlp

MESH_GOALS = ("auto", "latency")
"""Values of --mesh that let `pipeline.planning.mesh` choose one: for throughput, or for the time of one clip."""
HANG_OVER_PLAN = 4.0
"""Planned times are estimates: a clip must take at least this many times as long as planned before it counts as hanging."""


def job_ids(text: str) -> tuple[str, ...]:
    """Reads ids of SLURM jobs; none from an empty text. Raises ValueError, which says what is needed."""
    if not text:
        return ()
    ids = tuple(re.split(r"[,:\s]+", text.strip()))
    if not all(re.fullmatch(r"[0-9]+(_[0-9]+)?", each) for each in ids):
        raise ValueError("needs ids of SLURM jobs, such as 1234 or 1234,1250_3")
    return ids


def _file(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _prefix(path: str) -> str:
    return "/" + path.strip("/") if path.strip("/") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """The machines that a run gets. Nothing here changes pixels, so it may differ from one submit to the next."""

    cluster: Annotated[
        str,
        Setting(
            asked="auto",
            choices=("auto", "local", "slurm"),
            help="auto is slurm if sbatch is found and configured here, else local",
        ),
    ]
    nodes_per_job: Annotated[int, Setting(metavar="N", help="nodes of each job")] = 1
    gpus_per_node: Annotated[
        int,
        Setting(
            metavar="N",
            help="GPUs, and so ranks, on each node of a job; on CPUs a GPU is a process",
        ),
    ] = 1
    mesh: Annotated[
        str,
        Setting(
            metavar="auto|latency|dp=A,cfg=B,sp=C",
            help="how a job's ranks are used: dp clips at once, cfg=2 for the two guidance branches on separate ranks, sp "
            "ranks per pass. auto takes the mesh with the most clips per GPU-hour, latency the one that renders a clip "
            "fastest, among those that fit into memory; --dry-run shows all of them and why one was taken",
        ),
    ] = "auto"
    measured: Annotated[
        str | None,
        Setting(
            metavar="FILE",
            help="measured times for choosing the mesh and planning: a run's reports/run.json or a bench's JSON "
            "(default: what earlier jobs of the same output measured, else the family's own figures, measured or "
            "estimated)",
        ),
    ] = None
    figures: Annotated[
        str | None,
        Setting(
            metavar="FILE",
            help="figures of families on your devices, as `bench --figures FAMILY` measures and writes them, for planning "
            "what no job has measured yet (default: those that come with the program; for another kind of GPU they are "
            "scaled and called estimated)",
        ),
    ] = None
    gpu_kind: Annotated[
        str | None,
        Setting(
            metavar="NAME",
            help="kind of GPU that jobs get, e.g. H100, for planning with the figures of that kind (default: what earlier "
            "jobs of the same output had, on this machine what the driver says, else the one that was measured)",
        ),
    ] = None
    gpu_memory_gb: Annotated[
        int | None,
        Setting(
            name="gpu_memory",
            metavar="GB",
            help="memory of a rank's device in units of 10^9 bytes; a mesh that is expected to need more is not taken "
            "(default: the memory that earlier jobs of the same output had, on this machine what the driver says, else no "
            "bound)",
        ),
    ] = None
    job_minutes: Annotated[
        int,
        Setting(
            metavar="M",
            help="minutes of work that a job gets; SLURM's time limit is longer, to leave a margin",
        ),
    ] = 60
    hang_seconds: Annotated[
        int,
        Setting(
            metavar="S",
            help="a clip, or another stage of a job, that takes longer hangs: the job ends and is started again. Never less "
            "than four times the planned time of the run's longest clip",
        ),
    ] = 3600
    max_parallel_jobs: Annotated[
        int,
        Setting(
            metavar="N",
            help="jobs at once (default: 16 under SLURM; on this machine as many as the GPUs allow, 1 without GPUs)",
        ),
    ]
    price_per_gpu_hour: Annotated[
        float | None,
        Setting(
            kind=str,
            metavar="X",
            read=number_reader(1e-6, 1e6),
            help="what an hour of one GPU costs, in any currency: dry run, status and reports say what clips cost",
        ),
    ] = None
    budget: Annotated[
        float | None,
        Setting(
            kind=str,
            metavar="X",
            read=number_reader(1e-6, 1e12),
            help="what the whole run may cost, over all submits: in the currency of --price-per-gpu-hour, or in GPU-hours if "
            "no price is given. A warning at 75%%; at 100%% no further job starts, those at work end, and the exit code is 6",
        ),
    ] = None
    notify: Annotated[
        tuple[str, ...],
        Setting(
            kind=list,
            metavar="URL|mailto:ADDRESS",
            help="whom the driver tells: at the end, when many clips fail, at 75%% and 100%% of the budget. A webhook to "
            "which it posts JSON, or an address to which this machine's mailer sends; may be repeated. A webhook's URL may "
            "be a secret, so set PAB_PIPELINE_NOTIFY instead (several with spaces): others can read command lines",
        ),
    ] = field(default_factory=tuple)
    notify_failure_rate: Annotated[
        float,
        Setting(
            kind=str,
            metavar="SHARE",
            read=read_share,
            help="share of the clips that ended in this submit, of at least ten, from which on --notify tells of failures, "
            "such as 10%%",
        ),
    ] = FAILED_SHARE
    metrics_file: Annotated[
        str | None,
        Setting(
            kind=str,
            metavar="FILE.prom",
            read=_file,
            help="file on this machine to which the driver writes metrics in the text form of Prometheus, for the textfile "
            "collector of node_exporter; needs the extra [metrics]",
        ),
    ] = None
    otlp: Annotated[
        str | None,
        Setting(
            metavar="URL|env",
            read=read_otlp,
            is_secret=True,
            help="OpenTelemetry collector to which the driver sends metrics and spans by OTLP over HTTP, such as "
            "http://collector:4318; env: as the variables OTEL_EXPORTER_OTLP_* say, which also hold headers. Needs the extra "
            "[otlp]",
        ),
    ] = None
    partition: Annotated[str | None, Setting(metavar="P", help="SLURM partition")] = None
    account: Annotated[str | None, Setting(metavar="A", help="SLURM account")] = None
    qos: Annotated[str | None, Setting(metavar="Q", help="SLURM quality of service")] = None
    slurm: Annotated[
        Mapping[str, str | bool],
        Setting(
            metavar="KEY=VALUE",
            help="any other sbatch option, e.g. --slurm constraint=a100 reservation=video; may be repeated",
        ),
    ] = field(default_factory=dict)
    ship_code: Annotated[
        bool,
        Setting(
            help="SLURM jobs run the program where the driver has it, so an edit or an upgrade reaches jobs that still wait "
            "(default: a copy in runs/.jobs/code, made when jobs are submitted)",
        ),
    ] = True
    comment: Annotated[
        str | None,
        Setting(metavar="TEXT", help="text that squeue shows beside each SLURM job, and sacct where the site keeps it"),
    ] = None
    after: Annotated[
        tuple[str, ...],
        Setting(
            asked="",
            kind=str,
            metavar="JOBID[,JOBID]",
            read=job_ids,
            help="SLURM jobs that must have ended well before any job of this submit starts; for other conditions: --slurm "
            "dependency=afterany:1234",
        ),
    ] = ()
    setup: Annotated[
        tuple[str, ...],
        Setting(
            kind=list,
            metavar="LINE",
            commands=("doctor",),
            help="a line of bash before python in the script of each SLURM job, e.g. --setup 'module load cuda'; may be "
            "repeated. Scripts are not a place for secrets: others may see them in the queue",
        ),
    ] = field(default_factory=tuple)
    python: Annotated[
        str | None,
        Setting(
            metavar="PATH",
            commands=("doctor",),
            help="interpreter of SLURM jobs, a path or a name that the nodes know (default: the one that submits; in a "
            "container python3). It needs the libraries of this program, not the program itself: jobs run a copy of that",
        ),
    ] = None
    container_image: Annotated[
        str | None,
        Setting(
            metavar="IMAGE",
            commands=("doctor",),
            help="container in which the ranks of SLURM jobs run, as its runtime names it, e.g. "
            "nvcr.io#nvidia/pytorch:25.01-py3 or /images/video.sif",
        ),
    ] = None
    container_runtime: Annotated[
        str,
        Setting(
            choices=("pyxis", "apptainer", "singularity"),
            commands=("doctor",),
            help="what begins the container: srun with the plugin pyxis, or a program of the nodes",
        ),
    ] = "pyxis"
    container_mounts: Annotated[
        tuple[str, ...],
        Setting(
            name="container_mount",
            kind=list,
            metavar="PATH[:PATH][:ro]",
            help="a path of the nodes that the container sees too, perhaps under another one; may be repeated. Mounted "
            "anyway are the run's folder in runs/.jobs, the program, and what is a local path of output, weights, LoRAs, "
            "certificate, reference roots and compile cache",
        ),
    ] = field(default_factory=tuple)
    dashboard_host: Annotated[
        str | None,
        Setting(
            metavar="ADDRESS",
            help="address of this machine at which jobs reach Dask, over TLS (default: loopback for local jobs, under "
            "SLURM the address of this host's name). On a host with several networks give the address that the nodes can "
            "reach. The page itself is always on loopback",
        ),
    ] = None
    dashboard_prefix: Annotated[
        str,
        Setting(
            metavar="PATH",
            help="path under which a proxy shows the dashboard, e.g. /user/me/proxy/8787; if it is a secret, set "
            "PAB_PIPELINE_DASHBOARD_PREFIX instead, because others can read command lines",
            read=_prefix,
        ),
    ] = ""

    @property
    def ranks_per_job(self) -> int:
        """Ranks of one job's group."""
        return self.nodes_per_job * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run: a manifest, an output, and how the manifest is rendered."""

    manifest: str
    output: Annotated[
        str,
        Setting(
            group="render",
            metavar="URL",
            help="where the run lives: a folder or any fsspec URL such as s3://bucket/prefix (default: "
            "runs/<manifest name>); submitting there again resumes",
        ),
    ]
    render: RenderSettings
    machines: MachineSettings
    dask: Annotated[bool, Setting(group="machines", help="do not start the Dask dashboard with the driver")] = True

    def to_dict(self) -> dict[str, object]:
        """Returns the tree as JSON values, without what can be a secret, since many can read run.json.

        Left out are addresses of signals and of the dashboard, and lines of setup, which may export anything.
        """
        document = asdict(self)
        for name in ("notify", "otlp", "dashboard_prefix", "setup"):
            del document["machines"][name]
        return document

    def job_settings(
        self,
        *,
        run_id: str,
        mesh: Mesh,
        broadcast_rules: dict[str, dict[str, object]] | None,
        pinned_weights: dict[str, str],
        pinned_loras: Mapping[str, tuple[Lora, ...]] | None = None,
        weights_digests: Mapping[str, str] | None = None,
        longest_clip_s: float = 0.0,
        exclusive: bool = True,
    ) -> JobSettings:
        """Returns the part that jobs get. `longest_clip_s`: planned seconds of the longest clip."""
        return JobSettings(
            output=self.output,
            run_id=run_id,
            mesh=mesh,
            render=self.render,
            broadcast_rules=broadcast_rules,
            pinned_weights=pinned_weights,
            pinned_loras=pinned_loras,
            weights_digests=weights_digests or {},
            hang_s=max(float(self.machines.hang_seconds), HANG_OVER_PLAN * longest_clip_s),
            exclusive=exclusive,
            driver=program(),
        )


def parse_mesh(text: str, source: str = "--mesh") -> Mesh:
    """Reads a mesh such as `dp=2,cfg=2,sp=4`; an axis that is left out is 1. Raises UsageError."""
    axes: dict[str, int] = {}
    for word in text.split(","):
        found = re.fullmatch(r"(dp|cfg|sp)=([1-9]\d*)", word.strip())
        if not found or found[1] in axes:
            raise UsageError(
                f"{source}={text!r}: {word!r}, needs auto, latency, or each of dp, cfg, sp at most once as sp=4"
            )
        axes[found[1]] = int(found[2])
    if axes.get("cfg", 1) > 2:
        raise UsageError(f"{source}={text!r}: cfg={axes['cfg']}, allowed 1 or 2 (there are two guidance branches)")
    return Mesh(**axes)


def default_output(manifest: str) -> str:
    """Returns `runs/<manifest name>`."""
    return f"runs/{PurePosixPath(manifest.rstrip('/')).stem}"


def absolute(url: str) -> str:
    """Returns a local path as an absolute one, so that jobs find it from any folder; returns a URL unchanged."""
    return url if "://" in url or "::" in url else str(Path(url).expanduser().absolute())
