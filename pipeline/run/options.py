"""Every setting of a run, once: its name, type, default and help. Flags, variables and --config files all come from here."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pab.execution.choice import ATTENTION_CHOICES, KEEP_CHOICES, LINEARS_CHOICES
from pipeline.exits import UsageError
from pipeline.run.environment import PREFIX

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting.

    `kind` is str, int, bool, list for text that may be given again (a table in a file gives `KEY=VALUE`), or dict for
    `KEY=VALUE` pairs; a bool's flag is its opposite: `--no-dask`.
    """

    name: str
    kind: type
    help: str
    default: str | int | bool | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    group: str = "rendering"

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return f"--{'no-' if self.kind is bool else ''}{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()


OPTIONS = (
    Option(name="output", kind=str, metavar="URL", help="where the run lives: a folder or any fsspec URL such as "
           "s3://bucket/prefix (default: runs/<manifest name>); submitting there again resumes"),
    Option(name="model", kind=str, default="demo", metavar="FAMILY", help="family of rows that name none"),
    Option(name="weights", kind=list, metavar="[FAMILY=]DIR_OR_HUB_ID", help="weights of --model, or of the family that is "
           "named: a folder, a file or a hub id (default: each family's own); may be repeated, a --config file has a table"),
    Option(name="broadcast", kind=str, metavar="PRESET_OR_FILE", help="broadcast of rows that name none: a preset of "
           "the family (`none` never reuses), or a JSON file of rules, whose name without .json rows may use too"),
    Option(name="precision", kind=str, choices=("float32", "bfloat16"),
           help="what the model computes in (default: float32 on CPUs, bfloat16 on GPUs)"),
    Option(name="device", kind=str, default="auto", choices=("auto", "cpu", "cuda"),
           help="auto is cuda under SLURM and where this machine has an NVIDIA GPU, else cpu"),
    Option(name="compile", kind=str, default="auto", choices=("auto", "on", "off"),
           help="compile the model's blocks, a graph per step pattern; rounds otherwise than eager blocks do, so it is part "
           "of a clip's digest, as are the fused kernels that Open-Sora's blocks then use on GPUs in bfloat16. auto is on "
           "for GPUs, for the families whose blocks can be compiled"),
    Option(name="attention", kind=str, default="auto", choices=ATTENTION_CHOICES,
           help="attention kernel: torch's own choice (default) or cuDNN first; auto is cuDNN where compiled blocks on a "
           "GPU have heads of 72 channels. Part of a clip's digest where it is cuDNN"),
    Option(name="keep", kind=str, default="full", choices=KEEP_CHOICES,
           help="how outputs of sites wait to be reused: as they are, or as 8-bit integers with a scale per token, in half "
           "of bfloat16's memory; part of a clip's digest where it is int8. Foresight keeps whole blocks, and always full"),
    Option(name="linears", kind=str, default="full", choices=LINEARS_CHOICES,
           help="matrix products of the model's blocks: in its precision, or of 8-bit floats (families that have them: "
           "open_sora, latte, open_sora_plan_v110), faster on GPUs from compute capability 8.9 on; part of a clip's "
           "digest where it is float8"),
    Option(name="compile_cache", kind=str, metavar="DIR",
           help="where jobs keep compiled kernels for the next one (default: a folder of yours in each node's temporary "
           "folder)"),
    Option(name="baseline", kind=bool, default=True, help="do not render one clip per job a second time without "
           "broadcast; reports then hold no measured speedup"),
    Option(name="cluster", kind=str, default="auto", choices=("auto", "local", "slurm"), group="machines",
           help="auto is slurm where sbatch is found and configured, else local"),
    Option(name="nodes_per_job", kind=int, default=1, metavar="N", group="machines", help="nodes of a job's group"),
    Option(name="gpus_per_node", kind=int, default=1, metavar="N", group="machines",
           help="GPUs, so ranks, on each of them; on CPUs a GPU is a process"),
    Option(name="mesh", kind=str, default="auto", metavar="auto|latency|dp=A,cfg=B,sp=C", group="machines",
           help="how a job's ranks are used: dp clips at once, cfg=2 guidance branches apart, sp ranks per pass. auto takes "
           "what gives the most clips per GPU-hour, latency what renders one clip fastest, of what fits into memory; "
           "--dry-run shows all of them and why one was taken"),
    Option(name="measured", kind=str, metavar="FILE", group="machines",
           help="measured times for choosing the mesh and planning: a run's reports/run.json or a bench's JSON (default: "
           "what earlier jobs of the same output measured, else the family's figures)"),
    Option(name="gpu_memory", kind=int, metavar="GB", group="machines",
           help="memory of a rank's device, 10^9 bytes each; a mesh that is expected to need more is not taken (default: "
           "what earlier jobs of the same output had, here what the driver says, else no bound)"),
    Option(name="batch", kind=str, default="auto", metavar="auto|N", group="machines",
           help="how many clips of one size and plan are rendered together, where the family can (at most 8): N, or as many "
           "as the job measures to be faster, beginning with one. On the record, not in the digest: it rounds otherwise, "
           "no more than another kind of GPU does"),
    Option(name="job_minutes", kind=int, default=60, metavar="M", group="machines",
           help="how much work a job is given; SLURM's time limit leaves room above it"),
    Option(name="hang_seconds", kind=int, default=3600, metavar="S", group="machines",
           help="a clip that takes longer hangs: its job ends and is started again. Never less than four times what the "
           "longest clip of the run is planned to take"),
    Option(name="max_parallel_jobs", kind=int, metavar="N", group="machines",
           help="jobs at once (default: 16 under SLURM; here as many as the GPUs allow, 1 without GPUs)"),
    Option(name="partition", kind=str, metavar="P", group="machines", help="SLURM partition"),
    Option(name="account", kind=str, metavar="A", group="machines", help="SLURM account"),
    Option(name="qos", kind=str, metavar="Q", group="machines", help="SLURM quality of service"),
    Option(name="slurm", kind=dict, metavar="KEY=VALUE", group="machines",
           help="any other sbatch option, e.g. --slurm constraint=a100 reservation=video; may be repeated"),
    Option(name="dask", kind=bool, default=True, group="machines", help="start no Dask dashboard beside the driver"),
    Option(name="dashboard_host", kind=str, metavar="ADDRESS", group="machines",
           help="address of this machine at which jobs reach Dask, over TLS (default: loopback for local jobs, under SLURM "
           "what this host's name stands for); a host with several networks needs the one that the nodes see. The page "
           "itself is on loopback always"),
    Option(name="dashboard_prefix", kind=str, metavar="PATH", group="machines",
           help="path under which a proxy shows the dashboard, e.g. /user/me/proxy/8787"),
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every setting as a flag; a flag that is not given is None, so that variables and files can speak."""
    groups = {name: parser.add_argument_group(name) for name in ("rendering", "machines")}
    for option in OPTIONS:
        add_option(groups[option.group], option)


def add_option(group: argparse._ActionsContainer, option: Option) -> None:
    """Adds one setting as a flag."""
    shown = "" if option.default is None or option.kind is bool else f" (default: {option.default})"
    text = option.help + shown
    if option.kind is bool:
        group.add_argument(option.flag, dest=option.name, action="store_const", const=False, help=text)
    elif option.kind is list:
        group.add_argument(option.flag, dest=option.name, action="append", metavar=option.metavar, help=text)
    elif option.kind is dict:
        group.add_argument(option.flag, dest=option.name, nargs="+", action="extend", metavar=option.metavar, help=text)
    else:
        group.add_argument(
            option.flag, dest=option.name, metavar=option.metavar, choices=option.choices or None, help=text
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A setting's value and who set it, e.g. `--mesh`, `PAB_PIPELINE_MESH`, `run.toml: mesh` or `default`."""

    value: object
    source: str


def choose(
    flags: Mapping[str, object], environment: Mapping[str, str], config: Path | None = None
) -> dict[str, Chosen]:
    """Decides every setting: flag, else environment variable, else --config file, else default.

    Raises UsageError for an unknown name or a value of the wrong type, naming where it stands.
    """
    file = read_config(config) if config else {}
    _refuse_unknown(environment, file, config)
    chosen = {}
    for option in OPTIONS:
        places = (
            (option.flag, flags.get(option.name)),
            (option.variable, environment.get(option.name)),
            (f"{config}: {option.name}", file.get(option.name)),
        )
        source, value = next(((s, v) for s, v in places if v is not None), ("default", option.default))
        chosen[option.name] = Chosen(value=_typed(option, value, source), source=source)
    return chosen


def read_config(path: Path) -> dict[str, object]:
    """Reads a --config file. Raises UsageError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}; give a TOML file such as: gpus_per_node = 4") from error


def _refuse_unknown(environment: Mapping[str, str], file: Mapping[str, object], config: Path | None) -> None:
    known = {option.name for option in OPTIONS}
    for name in sorted(set(file) - known):
        raise UsageError(f"{config}: {name!r} is no setting, allowed: {', '.join(sorted(known))}")
    for name in sorted(set(environment) - known):
        raise UsageError(
            f"{PREFIX}{name.upper()} is set and is no setting, allowed: "
            + ", ".join(PREFIX + allowed.upper() for allowed in sorted(known))
        )


def _typed(option: Option, value: object, source: str) -> object:
    if value is None:
        return {} if option.kind is dict else () if option.kind is list else None
    if option.kind is list:
        return _texts(value, source)
    if option.kind is dict:
        return _pairs(value, source)
    if option.kind is bool:
        return _truth(value, source)
    if option.kind is int:
        return _positive(value, source)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{source}={value!r}, needs text")
    if option.choices and value not in option.choices:
        raise UsageError(f"{source}={value!r}, allowed: {', '.join(option.choices)}")
    return value


def _positive(value: object, source: str) -> int:
    try:
        number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"{source}={value!r}, needs a whole number of 1 or more")
    return number


def _truth(value: object, source: str) -> bool:
    word = str(value).lower()
    if word not in _TRUE + _FALSE:
        raise UsageError(f"{source}={value!r}, allowed: {', '.join(_TRUE + _FALSE)}")
    return word in _TRUE


def _texts(value: object, source: str) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = [f"{key}={entry}" if isinstance(entry, str) and entry else entry for key, entry in value.items()]
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UsageError(f"{source}={text!r}, needs text")
    return tuple(texts)


def _pairs(value: object, source: str) -> dict[str, str | bool]:
    if isinstance(value, Mapping):
        return {str(key): entry if isinstance(entry, bool) else str(entry) for key, entry in value.items()}
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list):
        raise UsageError(f"{source}={value!r}, needs KEY=VALUE pairs")
    pairs: dict[str, str | bool] = {}
    for word in words:
        key, equals, entry = str(word).removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not entry):
            raise UsageError(f"{source}: {word!r} is not KEY=VALUE, e.g. constraint=a100 (KEY alone has no value)")
        pairs[key] = entry if equals else True
    return pairs
