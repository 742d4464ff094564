"""The settings tree of a run: what it holds, saved in run.json, handed down in parts.

A setting stands once: as a field of `MachineSettings` here, or of `jobs.settings.RenderSettings` if jobs follow it. Its flag,
variable, key of a --config file and line in --help come from there (`options.py`); `build.py` fills in what depends on this
machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from jobs.settings import JobSettings, Mesh, RenderSettings, Setting
from pipeline.exits import UsageError

MESH_GOALS = ("auto", "latency")
"""Instead of a mesh: what one is chosen for (`pipeline.planning.mesh`)."""
HANG_OVER_PLAN = 4.0
"""A plan is an estimate: a clip is taken to hang only when it takes this many times as long, however short the limit."""


def _prefix(path: str) -> str:
    return "/" + path.strip("/") if path.strip("/") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """What machines a run gets. Nothing here changes pixels, so it may differ from one submit to the next."""

    cluster: Annotated[
        str,
        Setting(
            asked="auto",
            choices=("auto", "local", "slurm"),
            help="auto is slurm where sbatch is found and configured, else local",
        ),
    ]
    nodes_per_job: Annotated[int, Setting(metavar="N", help="nodes of a job's group")] = 1
    gpus_per_node: Annotated[
        int,
        Setting(
            metavar="N",
            help="GPUs, so ranks, on each of them; on CPUs a GPU is a process",
        ),
    ] = 1
    mesh: Annotated[
        str,
        Setting(
            metavar="auto|latency|dp=A,cfg=B,sp=C",
            help="how a job's ranks are used: dp clips at once, cfg=2 guidance branches apart, sp ranks per pass. "
            "auto takes what gives the most clips per GPU-hour, latency what renders one clip fastest, of what "
            "fits into memory; --dry-run shows all of them and why one was taken",
        ),
    ] = "auto"
    measured: Annotated[
        str | None,
        Setting(
            metavar="FILE",
            help="measured times for choosing the mesh and planning: a run's reports/run.json or a bench's JSON "
            "(default: what earlier jobs of the same output measured, else the family's figures)",
        ),
    ] = None
    gpu_memory_gb: Annotated[
        int | None,
        Setting(
            name="gpu_memory",
            metavar="GB",
            help="memory of a rank's device, 10^9 bytes each; a mesh that is expected to need more is not taken "
            "(default: what earlier jobs of the same output had, here what the driver says, else no bound)",
        ),
    ] = None
    job_minutes: Annotated[
        int,
        Setting(
            metavar="M",
            help="how much work a job is given; SLURM's time limit leaves room above it",
        ),
    ] = 60
    hang_seconds: Annotated[
        int,
        Setting(
            metavar="S",
            help="a clip that takes longer hangs: its job ends and is started again. Never less than four times what"
            " the longest clip of the run is planned to take",
        ),
    ] = 3600
    max_parallel_jobs: Annotated[
        int,
        Setting(
            metavar="N",
            help="jobs at once (default: 16 under SLURM; here as many as the GPUs allow, 1 without GPUs)",
        ),
    ]
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
    dashboard_host: Annotated[
        str | None,
        Setting(
            metavar="ADDRESS",
            help="address of this machine at which jobs reach Dask, over TLS (default: loopback for local jobs, "
            "under SLURM what this host's name stands for); a host with several networks needs the one that the"
            " nodes see. The page itself is on loopback always",
        ),
    ] = None
    dashboard_prefix: Annotated[
        str,
        Setting(
            metavar="PATH",
            help="path under which a proxy shows the dashboard, e.g. /user/me/proxy/8787",
            read=_prefix,
        ),
    ] = ""

    @property
    def ranks_per_job(self) -> int:
        """Ranks of one job's group."""
        return self.nodes_per_job * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run: a manifest, an output and how the one becomes the other."""

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
    dask: Annotated[bool, Setting(group="machines", help="start no Dask dashboard beside the driver")] = True

    def to_dict(self) -> dict[str, object]:
        """Returns the tree as JSON values."""
        return asdict(self)

    def job_settings(
        self,
        *,
        run_id: str,
        mesh: Mesh,
        broadcast_rules: dict[str, dict[str, object]] | None,
        pinned_weights: dict[str, str],
        longest_clip_s: float = 0.0,
    ) -> JobSettings:
        """Returns the part that travels into the jobs. `longest_clip_s`: what the longest clip is planned to take."""
        return JobSettings(
            output=self.output,
            run_id=run_id,
            mesh=mesh,
            render=self.render,
            broadcast_rules=broadcast_rules,
            pinned_weights=pinned_weights,
            hang_s=max(float(self.machines.hang_seconds), HANG_OVER_PLAN * longest_clip_s),
        )


def parse_mesh(text: str, source: str = "--mesh") -> Mesh:
    """Reads `dp=2,cfg=2,sp=4`; an axis left out is 1. Raises UsageError."""
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
    """Returns a local path as an absolute one, so that jobs find it from any folder; a URL as it is."""
    return url if "://" in url or "::" in url else str(Path(url).expanduser().absolute())
