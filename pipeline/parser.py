"""The command line's commands and flags. Nothing slow is imported here, so `--help` answers at once."""

from __future__ import annotations

import argparse
import difflib
import platform
from pathlib import Path
from typing import Any, NoReturn

from pipeline.exits import UsageError
from pipeline.run.options import add_options, add_options_of
from pipeline.run.source_flags import SOURCES, add_source_flags, count
from pipeline.screen import own_command

EXITS = """exit codes:
  0 all clips rendered   1 error   2 wrong usage   3 some clips failed
  4 manifest invalid   5 cluster or bucket refused   6 budget spent   130 interrupted
  of verify: 7 the video is not what was signed or recorded   8 it carries no manifest"""

SETTINGS = """settings:
  Every setting above may also be an environment variable (PAB_PIPELINE_GPUS_PER_NODE=4) or a key of a --config file
  (gpus_per_node = 4; slurm = { constraint = "a100" }). A flag wins over a variable, a variable wins over the file.

"""

SUBMIT = """examples:
  python -m pipeline submit manifests/demo.parquet
  python -m pipeline submit prompts.parquet --output s3://videos/run1 --cluster slurm --gpus-per-node 4 \\
         --partition gpu --job-minutes 120 --max-parallel-jobs 8
  python -m pipeline submit prompts.parquet --gpus-per-node 4 --dry-run

"""


COLUMNS = """columns of a manifest:
  required: prompt
  optional: clip_id, negative_prompt, seed, model, num_frames, height, width, fps, num_steps, guidance_scale, broadcast,
            sampling, flow_shift, guidance_scale_2
  lora                    LoRAs of the row as --lora names them, several with ; between them, none for none at all; if
                          empty, those of --lora
  references              paths or URLs of images and videos, separated by ;. Allowed are files below the manifest's
                          folder or a --reference-root, http(s) at public addresses, s3, gs, az, abfs and abfss
  mask_strategy           which frames the references give; if empty, the first reference begins the clip
  loops                   how many times num_frames are rendered, each time continuing from the last frames; if empty,
                          up to the prompt's last text, so 3 for |0| a calm shore |2| a storm
  condition_frame_length  number of latent frames from which a loop continues
  condition_frame_edit    how much noise these frames start from: 0 keeps them, 1 draws them again
  Any other column is kept.

"""


BUILD = """examples:
  python -m pipeline manifest build prompts.csv prompts.parquet
  python -m pipeline manifest build captions.json.gz prompts.parquet --records data.items --prompt-column caption
  python -m pipeline manifest build 'set/*.jsonl' small.parquet --sample 100 --seeds 4 --sweep guidance_scale=4,5,6
  cat prompts.txt | python -m pipeline manifest build - prompts.parquet --num-frames 81 --set height=480 --set width=832

"""

_SOURCE_HELP = (
    "Parquet, CSV, JSON, JSON lines or text: files, folders, patterns, URLs, or - for standard input; a row is a clip"
)

BENCH = """examples:
  python -m pipeline bench                 all rows; on a CPU tiny models of the same classes, in a minute or two
  python -m pipeline bench --rows latte --seconds 500
  python -m pipeline bench --rows "open_sora: compiled pab357 int8, open_sora ours: compiled none"
  python -m pipeline bench --join runs/a runs/b --output runs/both
  python -m pipeline bench --figures wan_14b --output runs/figures
  python -m pipeline submit prompts.parquet --model wan_14b --figures runs/figures/figures.json --dry-run

"""

VERIFY = """examples:
  python -m pipeline verify runs/demo/videos/red-circle-left.mp4
  python -m pipeline verify s3://videos/run1 --clip red-circle-left --json
  python -m pipeline verify clip.mp4 --trust my-authority.pem

  Needs the extra: pip install 'pab-pipeline[c2pa]'. If the video lies in a run, its record is compared too.

"""

CALIBRATE = """examples:
  python -m pipeline calibrate prompts.txt --output plans/mine.json --match pab246
  python -m pipeline calibrate prompts.parquet --model open_sora --weights DIR --output plans/30db.json --min-psnr 30
  python -m pipeline submit prompts.parquet --broadcast plans/mine.json

"""


class Parser(argparse.ArgumentParser):
    """Raises an error with the exit code for wrong usage, so that --json can report it too."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; see: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as argparse does, but raises UsageError in the command that does not know a word, not above it."""
        found, left = super().parse_known_args(args, namespace)
        flag = next((word.partition("=")[0] for word in left if word.startswith("--")), None)
        if flag is not None:
            likely = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"{flag!r} is no flag of this command{f'; {likely[0]} is' if likely else ''}")
        if left:
            self.error(f"{left[0]!r} is one word too many")
        return found, left


class _Version(argparse.Action):
    """Shows versions and ends. The program's files are read only when asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        from jobs.version import CODE, program

        print(f"pab-pipeline {program()} in {CODE}, Python {platform.python_version()}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; the chosen command is in `command` (and `manifest_command`)."""
    parser = Parser(
        prog=own_command(),
        description="Renders manifests of prompts into AI video on SLURM or here, with Pyramid Attention Broadcast.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions of this program and of Python")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_submit(commands)
    _add_run_commands(commands)
    _add_manifest(commands)
    _add_bench(commands)
    _add_calibrate(commands)
    _add_doctor(commands)
    return parser


_Commands = argparse._SubParsersAction  # the type has no public name


def _command(commands: _Commands[Parser], name: str, summary: str, epilog: str = "") -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog + EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="write one JSON document to stdout and nothing else")


def _add_submit(commands: _Commands[Parser]) -> None:
    parser = _command(commands, "submit", "render a manifest, or continue a run", SETTINGS + SUBMIT)
    parser.add_argument("manifest", nargs="+", metavar="MANIFEST", help=_SOURCE_HELP)
    _add_submit_flags(parser)
    demo = _command(
        commands,
        "demo",
        "render eight clips of coloured shapes, with manifest and model that come with the program, on this machine",
        SETTINGS,
    )
    _add_submit_flags(demo)


def _add_submit_flags(parser: Parser) -> None:
    add_source_flags(parser)
    add_options(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    parser.add_argument("--detach", action="store_true", help="hand the jobs to SLURM and return")
    parser.add_argument(
        "--parsable",
        action="store_true",
        help="with --detach: write only the ids of the jobs, as `sbatch --dependency=afterany:IDS` takes them",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show jobs, times, saving and scripts; start and write nothing"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove what the output has of clips that are in the manifest no more: records, videos, failures",
    )
    parser.add_argument(
        "--force-new-settings",
        action="store_true",
        help="go on in the same output though settings that change pixels differ, and render its clips again with them",
    )
    _add_json(parser)


def _add_run_commands(commands: _Commands[Parser]) -> None:
    status = _run_command(commands, "status", "show how far a run is; reads only its output")
    status.add_argument(
        "--check", action="store_true", help="also read every record and video, and say which are damaged"
    )
    _add_json(status)
    watch = _run_command(commands, "watch", "show the status again and again until the run is finished")
    watch.add_argument(
        "--interval", type=_seconds, default=5.0, metavar="S", help="seconds between updates (default: 5)"
    )
    report = _run_command(commands, "report", "join the jobs' reports into reports/run.json, run.html, index.parquet")
    report.add_argument(
        "--share",
        type=_hours,
        metavar="HOURS",
        help="also write reports/shared.html, whose signed links show the clips to whoever has its address for so many hours "
        "(s3, gs, az; at most 168)",
    )
    _add_json(report)
    retry = _run_command(
        commands,
        "retry",
        "let the next submit try failed clips again (their failures move to history/)",
    )
    retry.add_argument("--clip", action="append", metavar="ID", help="only this clip; may be repeated")
    _add_json(retry)
    rerender = _run_command(
        commands,
        "rerender",
        "let the next submit render rendered clips again (their records move to history/)",
    )
    which = rerender.add_mutually_exclusive_group(required=True)
    which.add_argument("--clip", action="append", metavar="ID", help="this clip; may be repeated")
    which.add_argument(
        "--where",
        metavar="TEXT",
        help='clips whose row of reports/index.parquet fulfils this: "psnr < 25", "alarms has flickering and height >= 720"; '
        "a clip of which the column is not known stays",
    )
    _add_json(rerender)
    cancel = _run_command(commands, "cancel", "cancel the run's jobs; rendered clips stay")
    _add_json(cancel)
    logs = _run_command(commands, "logs", "show what the jobs logged, also while they run")
    logs.add_argument("--clip", metavar="ID", help="only what names this clip")
    logs.add_argument("--job", metavar="NAME", help="only the log of this job, such as job-00007")
    logs.add_argument("--follow", action="store_true", help="go on with new lines until the run is finished")
    _add_json(logs)
    export = _run_command(commands, "export", "write the rendered clips of a run as a data set of videos with captions")
    export.add_argument("target", metavar="TARGET", help="the folder or URL to write to")
    export.add_argument(
        "--format",
        choices=("webdataset", "huggingface", "csv"),
        required=True,
        help="webdataset: tar files of .mp4, .txt and .json; huggingface: train/ with metadata.jsonl, for load_dataset "
        "('videofolder'); csv: videos/ and clips.csv",
    )
    export.add_argument("--without-alarms", action="store_true", help="leave out clips with an alarm")
    export.add_argument(
        "--shard-mb", type=_megabytes, default=500.0, metavar="MB", help="size of a tar file, about (default: 500)"
    )
    export.add_argument("--overwrite", action="store_true", help="write over a data set that is there")
    _add_json(export)
    runs = _command(commands, "runs", "list the runs in a folder or under a prefix, the newest first")
    runs.add_argument("prefix", metavar="PREFIX", help="the folder or URL that holds runs, such as s3://videos or runs")
    _add_json(runs)
    _add_verify(commands)


def _add_verify(commands: _Commands[Parser]) -> None:
    verify = _command(
        commands,
        "verify",
        "read the C2PA manifest in a video: who signed it, what it says, and whether it holds",
        VERIFY,
    )
    verify.add_argument(
        "video",
        metavar="VIDEO",
        help="a video's path or URL; with --clip the run's folder or URL, as given to --output",
    )
    verify.add_argument("--clip", metavar="ID", help="the video of this clip of the run")
    verify.add_argument(
        "--trust",
        type=Path,
        metavar="FILE",
        help="certificates (PEM) of those whom you trust: exit code 7 unless one of them vouches for the signer",
    )
    _add_json(verify)


def _run_command(commands: _Commands[Parser], name: str, summary: str) -> Parser:
    parser = _command(commands, name, summary)
    parser.add_argument("output", metavar="OUTPUT", help="the run's folder or URL, as given to submit --output")
    return parser


def _add_manifest(commands: _Commands[Parser]) -> None:
    parser = _command(commands, "manifest", "check or make manifests")
    inner = parser.add_subparsers(dest="manifest_command", metavar="COMMAND", required=True)
    validate = _command(inner, "validate", "check every row of a manifest and list the wrong ones", SOURCES + COLUMNS)
    validate.add_argument("manifest", nargs="+", metavar="MANIFEST", help=_SOURCE_HELP)
    add_source_flags(validate)
    add_options_of(validate, "validate")
    _add_json(validate)
    build = _command(
        inner,
        "build",
        "make a Parquet manifest of prompts in any usual form",
        BUILD + SOURCES + COLUMNS,
    )
    build.add_argument("source", nargs="+", metavar="SOURCE", help=_SOURCE_HELP)
    build.add_argument("manifest", metavar="MANIFEST", help="the Parquet file to write")
    build.add_argument(
        "--force", "--overwrite", action="store_true", help="replace MANIFEST if it exists; a source never is"
    )
    add_source_flags(build, is_build=True)
    _add_json(build)


def _add_bench(commands: _Commands[Parser]) -> None:
    parser = _command(commands, "bench", "time our models, and their alternatives, on this machine", BENCH)
    parser.add_argument(
        "--output",
        default="runs/bench",
        metavar="DIR",
        help="folder for bench.json and bench.html, or figures.json (default: runs/bench)",
    )
    parser.add_argument(
        "--rows", metavar="TEXT,...", help="names of groups, or parts of rows' names (default: all; see --list)"
    )
    parser.add_argument("--list", action="store_true", help="list the rows, and about how long each group takes")
    parser.add_argument(
        "--figures",
        metavar="FAMILY",
        help="measure what planning needs to know of a family on this device, instead of rows: a few steps at two sizes, and "
        "without each kind of site; writes figures.json, which `submit --figures` reads",
    )
    parser.add_argument(
        "--weights",
        metavar="DIR",
        help="with --figures: a folder of weights, with which loading and decoding are timed too (default: random weights)",
    )
    for part, what in (("linears", "matrix products"), ("attention", "self attention")):
        parser.add_argument(
            f"--{part}",
            choices=("full", "float8"),
            default="full",
            help=f"with --figures: {what} of the run's precision (full, the default) or of 8-bit floats, as `submit --{part} "
            "float8` renders; each choice has an entry of its own",
        )
    parser.add_argument(
        "--eager",
        action="store_true",
        help="with --figures: blocks are not compiled, as `--compile auto` has it for few clips of a small model",
    )
    parser.add_argument(
        "--join", nargs="+", metavar="FILE", help="measure nothing; make one page of several bench.json"
    )
    parser.add_argument(
        "--size",
        choices=("auto", "full", "tiny"),
        default="auto",
        help="size of the models; auto: full on a GPU, else tiny",
    )
    parser.add_argument(
        "--repeat", type=count, default=3, metavar="N", help="timed clips per row, at most (default: 3)"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=3600,
        metavar="S",
        help="no row begins after this time; rows left out are marked (default: 3600)",
    )
    parser.add_argument(
        "--row-seconds", type=_seconds, default=300, metavar="S", help="time limit of a single row (default: 300)"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="backend of torch.compile; auto: inductor on a GPU, eager (graphs without generated kernels) on a CPU",
    )
    _add_json(parser)


def _add_calibrate(commands: _Commands[Parser]) -> None:
    parser = _command(
        commands,
        "calibrate",
        "measure on your prompts what may be reused, and search a plan for submit --broadcast",
        CALIBRATE,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPTS", help=_SOURCE_HELP)
    add_source_flags(parser)
    parser.add_argument("--output", dest="plan", type=Path, required=True, metavar="FILE.json", help="the plan file")
    add_options_of(parser, "calibrate")
    target = parser.add_argument_group("goal of the search (default: --match with the family's default preset)")
    one = target.add_mutually_exclusive_group()
    one.add_argument("--match", metavar="PRESET", help="the best quality for at most this preset's work")
    one.add_argument(
        "--computed-share",
        type=float,
        metavar="X",
        help="the best quality for at most this share of the work, e.g. 0.6",
    )
    one.add_argument(
        "--min-psnr", type=float, metavar="DB", help="the least work with at least this median PSNR, in dB"
    )
    parser.add_argument("--clips", type=int, default=2, metavar="N", help="prompts to search on (default: 2)")
    parser.add_argument(
        "--held-out", type=int, default=4, metavar="N", help="further prompts, to judge the plan by (default: 4)"
    )
    parser.add_argument(
        "--reuse", choices=("all", "residuals", "passes", "sites"), default="all",
        help="what the plan may reuse: the last prediction in place of a pass (passes), also kept residuals in place of all "
        "blocks (residuals), outputs of sites alone (sites), or all of them (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--block-ranges",
        type=int,
        default=1,
        metavar="N",
        help="number of block ranges that each get their own decisions (default: 1)",
    )
    parser.add_argument(
        "--probe-every",
        type=int,
        default=4,
        metavar="N",
        help="measure what reuse of sites does at every Nth step (default: 4)",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        metavar="M",
        help="take no longer than M minutes after the model is loaded, and say what that left out (default: no bound)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="the report page (default: the plan's name with .html)"
    )
    _add_json(parser)


def _add_doctor(commands: _Commands[Parser]) -> None:
    parser = _command(commands, "doctor", "check this machine and say what to do about what is missing")
    parser.add_argument(
        "--weights",
        action="append",
        metavar="[FAMILY=]DIR",
        help="check that this folder holds every part and file of a family's weights; may be repeated",
    )
    parser.add_argument(
        "--model", metavar="FAMILY", default="demo", help="the family of --weights without a name (default: demo)"
    )
    parser.add_argument("--output", metavar="URL", help="check that a run can be written to this folder or URL")
    add_options_of(parser, "doctor")
    _add_json(parser)


def _megabytes(text: str) -> float:
    size = float(text)
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text}, needs more than 0 MB")
    return size


def _hours(text: str) -> float:
    hours = float(text)
    # The longest time of S3's signed links is a week.
    if not 0 < hours <= 168:
        raise argparse.ArgumentTypeError(f"{text}, needs more than 0 hours, and 168 (a week) at most")
    return hours


def _seconds(text: str) -> float:
    seconds = float(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text}, needs more than 0 seconds")
    return seconds
