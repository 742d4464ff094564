"""The command line's commands and flags. Nothing slow is imported here, so `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.arguments import Commands, Parser, Version, add_json, command, hours, megabytes, minutes, seconds
from pipeline.help_texts import BENCH, BUILD, CALIBRATE, COLUMNS, EXITS, SETTINGS, SOURCE_HELP, SUBMIT, VERIFY
from pipeline.run.options import add_options, add_options_of
from pipeline.run.source_flags import SOURCES, add_source_flags, count
from pipeline.screen import own_command


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; the chosen command is in `command` (and `manifest_command`)."""
    parser = Parser(
        prog=own_command(),
        description="Renders manifests of prompts into AI video on SLURM or here, with Pyramid Attention Broadcast.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the versions of this program and of Python")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_submit(commands)
    _add_run_commands(commands)
    _add_manifest(commands)
    _add_bench(commands)
    _add_calibrate(commands)
    _add_doctor(commands)
    return parser


def _add_submit(commands: Commands[Parser]) -> None:
    parser = command(commands, "submit", "render a manifest, or continue a run", SETTINGS + SUBMIT)
    parser.add_argument("manifest", nargs="+", metavar="MANIFEST", help=SOURCE_HELP)
    _add_submit_flags(parser)
    demo = command(
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
    add_json(parser)


def _add_run_commands(commands: Commands[Parser]) -> None:
    status = _run_command(commands, "status", "show how far a run is; reads only its output")
    status.add_argument(
        "--check", action="store_true", help="also read every record and video, and say which are damaged"
    )
    add_json(status)
    watch = _run_command(commands, "watch", "show the status again and again until the run is finished")
    watch.add_argument(
        "--interval", type=seconds, default=5.0, metavar="S", help="seconds between updates (default: 5)"
    )
    report = _run_command(commands, "report", "join the jobs' reports into reports/run.json, run.html, index.parquet")
    report.add_argument(
        "--share",
        type=hours,
        metavar="HOURS",
        help="also write reports/shared.html, whose signed links show the clips to whoever has its address for so many hours "
        "(s3, gs, az; at most 168)",
    )
    add_json(report)
    retry = _run_command(
        commands,
        "retry",
        "let the next submit try failed clips again (their failures move to history/)",
    )
    retry.add_argument("--clip", action="append", metavar="ID", help="only this clip; may be repeated")
    add_json(retry)
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
    add_json(rerender)
    cancel = _run_command(commands, "cancel", "cancel the run's jobs; rendered clips stay")
    add_json(cancel)
    logs = _run_command(commands, "logs", "show what the jobs logged, also while they run")
    logs.add_argument("--clip", metavar="ID", help="only what names this clip")
    logs.add_argument("--job", metavar="NAME", help="only the log of this job, such as job-00007")
    logs.add_argument("--follow", action="store_true", help="go on with new lines until the run is finished")
    add_json(logs)
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
        "--shard-mb", type=megabytes, default=500.0, metavar="MB", help="size of a tar file, about (default: 500)"
    )
    export.add_argument(
        "--overwrite", action="store_true", help="remove what an earlier export of this format left there, then write"
    )
    add_json(export)
    runs = command(commands, "runs", "list the runs in a folder or under a prefix, the newest first")
    runs.add_argument("prefix", metavar="PREFIX", help="the folder or URL that holds runs, such as s3://videos or runs")
    add_json(runs)
    _add_verify(commands)


def _add_verify(commands: Commands[Parser]) -> None:
    verify = command(
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
    add_json(verify)


def _run_command(commands: Commands[Parser], name: str, summary: str) -> Parser:
    parser = command(commands, name, summary)
    parser.add_argument("output", metavar="OUTPUT", help="the run's folder or URL, as given to submit --output")
    return parser


def _add_manifest(commands: Commands[Parser]) -> None:
    parser = command(commands, "manifest", "check or make manifests")
    inner = parser.add_subparsers(dest="manifest_command", metavar="COMMAND", required=True)
    validate = command(inner, "validate", "check every row of a manifest and list the wrong ones", SOURCES + COLUMNS)
    validate.add_argument("manifest", nargs="+", metavar="MANIFEST", help=SOURCE_HELP)
    add_source_flags(validate)
    add_options_of(validate, "validate")
    add_json(validate)
    build = command(
        inner,
        "build",
        "make a Parquet manifest of prompts in any usual form",
        BUILD + SOURCES + COLUMNS,
    )
    build.add_argument("source", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    build.add_argument("manifest", metavar="MANIFEST", help="the Parquet file to write")
    build.add_argument(
        "--force", "--overwrite", action="store_true", help="replace MANIFEST if it exists; a source never is"
    )
    add_source_flags(build, is_build=True)
    add_json(build)


def _add_bench(commands: Commands[Parser]) -> None:
    parser = command(commands, "bench", "time our models, and their alternatives, on this machine", BENCH)
    parser.add_argument(
        "--output",
        default="runs/bench",
        metavar="DIR",
        help="folder for bench.json and bench.html, of peers peers.json, .md and .svg, or figures.json (default: runs/bench)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over a table that is in DIR")
    parser.add_argument(
        "--rows",
        metavar="TEXT,...",
        help="names of groups, or parts of rows' names (default: all but peers; see --list)",
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
        "--against",
        metavar="FILE",
        help="an older bench.json, or its folder: tell which rows became slower or faster by more than 5 %% on the same kind "
        "of device, and exit with 1 if one is slower",
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
        type=seconds,
        default=3600,
        metavar="S",
        help="no row begins after this time; rows left out are marked (default: 3600)",
    )
    parser.add_argument(
        "--row-seconds", type=seconds, default=300, metavar="S", help="time limit of a single row (default: 300)"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="backend of torch.compile; auto: inductor on a GPU, eager (graphs without generated kernels) on a CPU",
    )
    add_json(parser)


def _add_calibrate(commands: Commands[Parser]) -> None:
    parser = command(
        commands,
        "calibrate",
        "measure on your prompts what may be reused, and search a plan for submit --broadcast",
        CALIBRATE,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPTS", help=SOURCE_HELP)
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
        type=minutes,
        metavar="M",
        help="take no longer than M minutes after the model is loaded, and say what that left out (default: no bound)",
    )
    parser.add_argument(
        "--presets",
        metavar="NAME,...",
        help="which presets are judged beside the plan on the held-out prompts (default: all of them)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="the report page (default: the plan's name with .html)"
    )
    add_json(parser)


def _add_doctor(commands: Commands[Parser]) -> None:
    parser = command(commands, "doctor", "check this machine and say what to do about what is missing")
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
    add_json(parser)
