"""Builds the settings tree from the user's choices: fills in what depends on this machine, refuses contradictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.devices import has_gpu, torch_without_gpus, visible_gpus
from jobs.render_settings import RenderSettings
from jobs.setting import settings_in
from pab.families import FAMILIES
from pab.family import AUTO_PRECISION
from pab.weights.lora import Lora, read_lora
from pipeline.exits import UsageError
from pipeline.run.environment import variables
from pipeline.run.options import Chosen
from pipeline.run.settings import MESH_GOALS, MachineSettings, RunSettings, absolute, default_output, parse_mesh
from pipeline.run.signing import signing_paths
from pipeline.signals.notify import read_channels

SLURM_PARALLEL_JOBS = 16
_SLURMS = (
    "partition", "account", "qos", "slurm", "comment", "after", "setup", "python", "container_image", "container_mount",
)  # fmt: skip


def build_settings(manifest: str, chosen: Mapping[str, Chosen], *, place: str | None = None) -> RunSettings:
    """Builds the tree and fills in what depends on this machine. Raises UsageError naming the setting and its source.

    `place`: a path beside which references lie and after which the output is called, by default the manifest.
    """
    value: dict[str, Any] = {name: choice.value for name, choice in chosen.items()}
    if value["cluster"] == "auto":
        from cluster.slurm_clients import slurm_is_configured

        value["cluster"] = "slurm" if slurm_is_configured() else "local"
    gpus = visible_gpus(variables()) if has_gpu(variables()) else ()
    if value["device"] == "auto":
        value["device"] = auto_device(value["cluster"], gpu_here=bool(gpus))
    on_gpus = value["device"] == "cuda"
    if value["precision"] == AUTO_PRECISION and not on_gpus:
        value["precision"] = "float32"
    value["compile"] = value["compile"] == "on" or (value["compile"] == "auto" and on_gpus)
    if value["decode"] == "auto":
        value["decode"] = "fast" if on_gpus and value["precision"] != "float32" else "published"
    value["compile_cache"] = absolute(value["compile_cache"]) if value["compile_cache"] else None
    if value["python"] and "/" in value["python"] and not value["container_image"]:
        value["python"] = absolute(value["python"])
    value["reference_root"] = _reference_roots(
        place or manifest, value["reference_root"], chosen["reference_root"].source
    )
    value["output"] = absolute(value["output"] or default_output(place or manifest))
    if value["output"].startswith("memory://"):
        raise UsageError(
            f"{chosen['output'].source}={value['output']}: memory:// is this process's own, so jobs and later commands do "
            "not see it; name a folder, or a URL such as s3://bucket/run"
        )
    ranks = value["nodes_per_job"] * value["gpus_per_node"]
    value["max_parallel_jobs"] = value["max_parallel_jobs"] or _parallel_jobs(value["cluster"], len(gpus), ranks)
    value["weights"], family_weights = _weights(value["model"], value["weights"], chosen["weights"].source)
    value |= signing_paths(value, chosen)
    value["lora"] = _loras(value["model"], value["lora"], chosen["lora"].source)
    value["notify"] = _channels(value["notify"], chosen["notify"].source)
    settings = RunSettings(
        manifest=manifest,
        render=RenderSettings(**_part(RenderSettings, value), family_weights=family_weights),
        machines=MachineSettings(**_part(MachineSettings, value)),
        **_part(RunSettings, value),
    )
    _check(settings, chosen)
    return settings


def auto_device(cluster: str, *, gpu_here: bool) -> str:
    """Returns what `--device auto` means. `gpu_here`: whether this machine has a GPU that may be used."""
    return "cuda" if cluster == "slurm" or (gpu_here and torch_without_gpus() is None) else "cpu"


def _part(part: type, value: Mapping[str, Any]) -> dict[str, Any]:
    # The values of the settings in one part of the tree, by field name.
    return {field: value[setting.name or field] for field, (_, setting) in settings_in(part).items()}


def _reference_roots(manifest: str, named: Sequence[str], source: str) -> tuple[str, ...]:
    # The folder of a manifest in object storage has no local files.
    path = manifest.removeprefix("file://")
    own = () if "://" in path or "::" in path else (str(Path(absolute(path)).parent),)
    for root in named:
        if not Path(root).expanduser().is_dir():
            raise UsageError(f"{source}={root!r} is no folder here; name a folder, or leave it out")
    return tuple(dict.fromkeys((*own, *map(absolute, named))))


def _channels(texts: Sequence[str], source: str) -> tuple[str, ...]:
    try:
        return read_channels(texts)
    except ValueError as error:
        raise UsageError(f"{source} {error}") from error


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
    if settings.render.batch > 1 and family is not None and family.max_batch == 1:
        can = ", ".join(name for name, each in FAMILIES.items() if each.max_batch > 1)
        raise UsageError(
            f"{chosen['batch'].source}={settings.render.batch}: family {family.name} renders one clip at a time, {can} "
            "render several together; say auto or 1"
        )
    for name in ("min_quality", "quality_samples"):
        if not settings.render.baseline and chosen[name].source != "default" and chosen[name].value != "off":
            raise UsageError(
                f"{chosen[name].source}={chosen[name].value} needs samples that are rendered twice, and "
                f"{chosen['baseline'].source} renders none; leave one of them out"
            )
    if settings.render.device == "cpu" and settings.render.attention == "cudnn":
        raise UsageError(f"{chosen['attention'].source}=cudnn needs a GPU and --device is cpu; allowed: auto, default")
    _check_container(settings.machines, chosen)
    for name in _SLURMS:
        if settings.machines.cluster == "local" and chosen[name].value:
            raise UsageError(
                f"{chosen[name].source} is SLURM's and the jobs run on this machine (--cluster "
                f"{chosen['cluster'].value}); leave it out or say --cluster slurm"
            )


def _check_container(machines: MachineSettings, chosen: Mapping[str, Chosen]) -> None:
    image, runtime = machines.container_image, machines.container_runtime
    for name in ("container_runtime", "container_mount"):
        if image is None and chosen[name].source != "default":
            raise UsageError(f"{chosen[name].source} says how, and no --container-image says which; name the image too")
    if image is not None and image.endswith((".sif", ".sqsh")) and (runtime == "pyxis") is image.endswith(".sif"):
        fits = "apptainer" if image.endswith(".sif") else "pyxis"
        raise UsageError(
            f"{chosen['container_image'].source}={image} is no image of {runtime}; say --container-runtime {fits}"
        )


def _weights(model: str, given: tuple[str, ...], source: str) -> tuple[str | None, dict[str, str]]:
    # Returns the weights given without a family's name, and the others by family.
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


def _loras(model: str, given: tuple[str, ...], source: str) -> dict[str, tuple[Lora, ...]]:
    # Returns LoRAs by family, each with its component and, if it is a file here, an absolute path.
    found: dict[str, tuple[Lora, ...]] = {}
    for text in given:
        family, equals, rest = text.partition("=")
        name, said = (family, rest) if equals and family in FAMILIES else (model, text)
        rules = FAMILIES[name].loras if name in FAMILIES else None
        if rules is None:
            takers = ", ".join(each.name for each in FAMILIES.values() if each.loras is not None)
            raise UsageError(
                f"{source}={text!r}: family {name} takes no LoRA, these do: {takers}; write FAMILY=... before it"
            )
        try:
            lora = rules.placed(read_lora(said), name)
        except ValueError as error:
            raise UsageError(f"{source}={text!r}: {error}") from error
        lora = replace(lora, place=_place(lora.place))
        if any((lora.place, lora.component) == (other.place, other.component) for other in found.get(name, ())):
            raise UsageError(f"{source}={text!r}: {name} has this LoRA already; give it once")
        found[name] = (*found.get(name, ()), lora)
    return found


def _place(weights: str) -> str:
    # A hub id looks like a relative path: it is a hub id only if no file here has that name.
    return absolute(weights) if Path(weights).expanduser().exists() else weights
