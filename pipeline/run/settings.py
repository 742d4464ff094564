"""The settings tree of a run: built once from what the user chose, saved in run.json, handed down in parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast

from cluster.devices import visible_gpus
from jobs.rendering.batch_size import AUTO
from jobs.settings import JobSettings, Mesh
from pab.execution.choice import Execution, execution_of
from pab.families import FAMILIES
from pab.family import MAX_BATCH, Family
from pipeline.exits import UsageError
from pipeline.run.environment import variables
from pipeline.run.options import Chosen

SLURM_PARALLEL_JOBS = 16
MESH_GOALS = ("auto", "latency")
"""Instead of a mesh: what one is chosen for (`pipeline.planning.mesh`)."""
HANG_OVER_PLAN = 4.0
"""A plan is an estimate: a clip is taken to hang only when it takes this many times as long, however short the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    """What clips are rendered with. All but `device`, `baseline` and `compile_cache` change pixels.

    `weights`: given for `model` without its name. `family_weights`: those given with a family's name.
    """

    model: str
    weights: str | None
    broadcast: str | None
    precision: str
    device: str
    baseline: bool
    family_weights: Mapping[str, str] = field(default_factory=dict)
    compile: bool = False
    attention: str = "auto"
    keep: str = "full"
    linears: str = "full"
    compile_cache: str | None = None

    def weights_of(self, model: str) -> str | None:
        """Returns the weights that the user gives a family; None for its own."""
        return self.family_weights.get(model, self.weights if model == self.model else None)

    def execution(self, family: Family) -> Execution:
        """Returns how these settings run a family."""
        return execution_of(
            family,
            compiled=self.compile,
            attention=self.attention,
            device=self.device,
            precision=self.precision,
            keep=self.keep,
            linears=self.linears,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """What machines a run gets. Nothing here changes pixels, so it may differ from one submit to the next."""

    cluster: str
    nodes_per_job: int
    gpus_per_node: int
    mesh: str
    job_minutes: int
    hang_seconds: int
    max_parallel_jobs: int
    partition: str | None
    account: str | None
    qos: str | None
    slurm: Mapping[str, str | bool]
    dashboard_host: str | None = None
    dashboard_prefix: str = ""
    batch: int = AUTO
    """Clips that are rendered together, or `jobs.rendering.batch_size.AUTO`."""
    measured: str | None = None
    gpu_memory_gb: int | None = None

    @property
    def ranks_per_job(self) -> int:
        """Ranks of one job's group."""
        return self.nodes_per_job * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run: a manifest, an output and how the one becomes the other."""

    manifest: str
    output: str
    render: RenderSettings
    machines: MachineSettings
    dask: bool

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
            weights=self.render.weights_of(self.render.model),
            precision=self.render.precision,
            device=self.render.device,
            mesh=mesh,
            baseline=self.render.baseline,
            broadcast_rules=broadcast_rules,
            pinned_weights=pinned_weights,
            compile=self.render.compile,
            attention=self.render.attention,
            keep=self.render.keep,
            linears=self.render.linears,
            compile_cache=self.render.compile_cache,
            batch=self.machines.batch,
            hang_s=max(float(self.machines.hang_seconds), HANG_OVER_PLAN * longest_clip_s),
        )


def build_settings(manifest: str, chosen: Mapping[str, Chosen]) -> RunSettings:
    """Builds the tree, filling in what depends on this machine. Raises UsageError naming the setting and its source."""
    value = {name: choice.value for name, choice in chosen.items()}
    cluster = str(value["cluster"])
    if cluster == "auto":
        from cluster.slurm_settings import slurm_is_configured

        cluster = "slurm" if slurm_is_configured() else "local"
    device = str(value["device"])
    gpus = visible_gpus(variables())
    if device == "auto":
        device = "cuda" if cluster == "slurm" or gpus else "cpu"
    ranks = cast(int, value["nodes_per_job"]) * cast(int, value["gpus_per_node"])
    model = str(value["model"])
    weights, family_weights = _weights(
        model, cast(tuple[str, ...] | None, value["weights"]) or (), chosen["weights"].source
    )
    settings = RunSettings(
        manifest=manifest,
        output=absolute(cast(str | None, value["output"]) or default_output(manifest)),
        render=RenderSettings(
            model=model,
            weights=weights,
            family_weights=family_weights,
            broadcast=cast(str | None, value["broadcast"]),
            precision=cast(str | None, value["precision"]) or ("float32" if device == "cpu" else "bfloat16"),
            device=device,
            baseline=bool(value["baseline"]),
            compile=value["compile"] == "on" or (value["compile"] == "auto" and device == "cuda"),
            attention=str(value["attention"]),
            keep=str(value["keep"]),
            linears=str(value["linears"]),
            compile_cache=_folder(cast(str | None, value["compile_cache"])),
        ),
        machines=MachineSettings(
            cluster=cluster,
            nodes_per_job=cast(int, value["nodes_per_job"]),
            gpus_per_node=cast(int, value["gpus_per_node"]),
            mesh=str(value["mesh"]),
            job_minutes=cast(int, value["job_minutes"]),
            hang_seconds=cast(int, value["hang_seconds"]),
            max_parallel_jobs=cast(int | None, value["max_parallel_jobs"]) or _parallel_jobs(cluster, len(gpus), ranks),
            partition=cast(str | None, value["partition"]),
            account=cast(str | None, value["account"]),
            qos=cast(str | None, value["qos"]),
            slurm=cast(Mapping[str, str | bool], value["slurm"]),
            dashboard_host=cast(str | None, value["dashboard_host"]),
            dashboard_prefix=_prefix(cast(str | None, value["dashboard_prefix"])),
            measured=cast(str | None, value["measured"]),
            gpu_memory_gb=cast(int | None, value["gpu_memory"]),
            batch=_batch(str(value["batch"]), chosen["batch"].source),
        ),
        dask=bool(value["dask"]),
    )
    _check(settings, chosen)
    return settings


def _parallel_jobs(cluster: str, num_gpus: int, ranks: int) -> int:
    return SLURM_PARALLEL_JOBS if cluster == "slurm" else max(1, num_gpus // ranks)


def _check(settings: RunSettings, chosen: Mapping[str, Chosen]) -> None:
    mesh, ranks = settings.machines.mesh, settings.machines.ranks_per_job
    if mesh not in MESH_GOALS and (asked := parse_mesh(mesh, chosen["mesh"].source)).num_ranks != ranks:
        raise UsageError(
            f"{chosen['mesh'].source}={mesh} uses {asked.num_ranks} ranks, a job has {ranks} (--nodes-per-job "
            f"{settings.machines.nodes_per_job} x --gpus-per-node {settings.machines.gpus_per_node}); change one of them"
        )
    family = FAMILIES.get(settings.render.model)
    if chosen["compile"].value == "on" and family is not None and not family.compiles:
        can = ", ".join(name for name, each in FAMILIES.items() if each.compiles)
        raise UsageError(
            f"{chosen['compile'].source}=on: the blocks of family {family.name} cannot be compiled, those of {can} can; "
            "say auto or off"
        )
    if settings.machines.batch > 1 and family is not None and family.max_batch == 1:
        can = ", ".join(name for name, each in FAMILIES.items() if each.max_batch > 1)
        raise UsageError(
            f"{chosen['batch'].source}={settings.machines.batch}: family {family.name} renders one clip at a time, {can} "
            "render several together; say auto or 1"
        )
    if settings.render.device == "cpu" and settings.render.attention == "cudnn":
        raise UsageError(f"{chosen['attention'].source}=cudnn needs a GPU and --device is cpu; allowed: auto, default")
    for name in ("partition", "account", "qos", "slurm"):
        if settings.machines.cluster == "local" and chosen[name].value:
            raise UsageError(
                f"{chosen[name].source} is SLURM's and the jobs run on this machine (--cluster "
                f"{chosen['cluster'].value}); leave it out or say --cluster slurm"
            )


def _batch(text: str, source: str) -> int:
    if text == "auto":
        return AUTO
    if not re.fullmatch(r"[1-9]\d?", text) or int(text) > MAX_BATCH:
        raise UsageError(f"{source}={text!r}, needs auto or a number of clips from 1 to {MAX_BATCH}")
    return int(text)


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


def _folder(folder: str | None) -> str | None:
    return absolute(folder) if folder else None


def _prefix(path: str | None) -> str:
    return "/" + path.strip("/") if path and path.strip("/") else ""


def _weights(model: str, given: tuple[str, ...], source: str) -> tuple[str | None, dict[str, str]]:
    # Returns what is given without a family's name, and the others by family.
    plain: list[str] = []
    named: dict[str, str] = {}
    for text in given:
        family, equals, weights = text.partition("=")
        if not equals or Path(text).expanduser().exists():
            plain.append(_place(text))
            continue
        if family not in FAMILIES or not weights:
            raise UsageError(f"{source}={text!r}, needs FAMILY=DIR_OR_HUB_ID of a family: {', '.join(FAMILIES)}")
        if family in named:
            raise UsageError(f"{source}={text!r}, {family} has {named[family]!r} already; give it once")
        named[family] = _place(weights)
    if len(plain) + (model in named) > 1:
        twice = ", ".join([*plain, *(f"{model}={named[model]}" for _ in range(model in named))])
        raise UsageError(
            f"{source}: {twice} are all for --model {model}; write FAMILY=... before those of other families"
        )
    return (plain[0] if plain else None), named


def _place(weights: str) -> str:
    # A hub id looks like a relative path: it is one only if nothing of that name lies here.
    return absolute(weights) if Path(weights).expanduser().exists() else weights
