"""`bench`: times our models and what users would pick instead on this machine, and writes JSON and a page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.against import against, shown
from jobs.bench.factors import MEASURED, factors
from jobs.bench.groups import GROUPS
from jobs.bench.peers.chosen import PEERS, Chosen, chosen_peers, is_peers
from jobs.bench.peers.chosen import listed as listed_peers
from jobs.bench.peers.files import joined as joined_peers
from jobs.bench.rows import Row, all_rows, chosen_rows
from jobs.reports.bench_html import bench_page
from jobs.reports.peers_table import PEERS_FILE, write_peers
from pab.families import FAMILIES
from pab.family import FIGURES_FILE, FLOAT8_PARTS, figures_document, read_figures
from pipeline.commands import bench_peers
from pipeline.exits import Exit, UsageError
from pipeline.run.results import make_folder, write_result
from pipeline.screen import Screen, own_command

if TYPE_CHECKING:
    from jobs.bench.run import BenchSettings

SCHEMA = 1
DOCUMENT, LINES, PAGE = "bench.json", "lines.jsonl", "bench.html"
NOT_HERE = (
    {
        "what": "VideoSys, whose PAB is the paper's own code",
        "why": "not run here: pip finds no package of it, so it cannot run in this process",
    },
)
"""What users might look for in the table."""

Json = dict[str, Any]


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `bench`: 1 when a row failed, or is slower than in --against; rows that cannot run here are no failure."""
    folder = Path(arguments.output)
    _check_flags(arguments)
    # Read before anything is measured: what is wrong with it is told at once.
    older = _read(arguments.against, "--against") if arguments.against else None
    if not (arguments.list or arguments.join):
        _make_output(folder, replaced=arguments.figures or arguments.overwrite)
    if arguments.figures:
        return _measure_figures(arguments, folder, screen)
    if arguments.join:
        document = joined([_read(path, "--join") for path in arguments.join])
        _make_output(folder, replaced=arguments.overwrite)
    else:
        if arguments.list:
            screen.result(*_listed(arguments.rows))
            return Exit.OK
        document = _measure(arguments, folder, screen)
    if older is not None:
        document["against"] = against(document, older)
    _write(folder, document)
    screen.result(document, f"{summary(document)}\n{folder / PAGE}\n{folder / DOCUMENT}")
    slower = any(line["changed"] == "slower" for line in document.get("against", ()))
    failed = slower or any(line["status"] == "failed" for line in document["rows"])
    return Exit.ERROR if failed or ("peers" in document and bench_peers.any_failed(document["peers"])) else Exit.OK


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raises UsageError for a flag that what is asked for would not look at: else its user waits for something else."""
    asked = [flag for flag in ("figures", "join", "list") if getattr(arguments, flag)]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are different things to do; give one of them")
    if arguments.rows is not None and asked in (["figures"], ["join"]):
        raise UsageError(f"--rows says what is timed, --{asked[0]} times no rows; give one of them")
    if arguments.overwrite and asked in (["figures"], ["list"]):
        raise UsageError(f"--overwrite is of rows and --join: --{asked[0]} writes over no table; leave it out")
    if arguments.against and asked in (["figures"], ["list"]):
        raise UsageError(f"--against compares rows, and --{asked[0]} times none; leave it out")
    of_figures = {"weights": None, "linears": "full", "attention": "full", "eager": False}
    given = [flag for flag, usual in of_figures.items() if getattr(arguments, flag) != usual]
    if given and not arguments.figures:
        raise UsageError(f"--{given[0]} is of --figures FAMILY; rows say it by a word, see --list")


def _make_output(folder: Path, *, replaced: bool) -> None:
    """Makes the folder. Raises UsageError where it cannot be written, or has a table: that may have taken hours."""
    make_folder(folder, flag="--output")
    if replaced:
        return
    if there := [name for name in (DOCUMENT, PEERS_FILE) if (folder / name).exists()]:
        raise UsageError(f"--output {folder}: {there[0]} exists; name another folder, or add --overwrite")


def _measure_figures(arguments: argparse.Namespace, folder: Path, screen: Screen) -> int:
    """Measures the figures of one family, and puts them in place of older ones of its kind in the folder's file."""
    name = arguments.figures
    if name not in FAMILIES:
        raise UsageError(f"--figures {name!r} is no family, allowed: {', '.join(FAMILIES)}")
    file = folder / FIGURES_FILE
    try:
        before = read_figures(file) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"--output {folder}: {error}; remove the file, or give another folder") from error
    from jobs.bench.figures import measure_figures

    float8 = tuple(part for part in FLOAT8_PARTS if getattr(arguments, part) == "float8")
    try:
        figures, about = measure_figures(
            name,
            _settings(arguments),
            weights=arguments.weights,
            tell=screen.note,
            float8=float8,
            eager=arguments.eager,
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"--figures {name}: {error}") from error
    kind = figures.device, figures.precision, figures.float8
    others = [each for each in before.get(name, ()) if (each.device, each.precision, each.float8) != kind]
    document = figures_document(before | {name: [*others, figures]})
    (*_, entry) = [each for each in document["figures"] if each["family"] == name]
    entry["about"] = about
    write_result(file, json.dumps(document, indent=1) + "\n")
    screen.result(entry, f"{name} on {figures.measured}\n{file}; plan with it: submit --figures {file}")
    return Exit.OK


def _settings(arguments: argparse.Namespace) -> BenchSettings:
    from jobs.bench.run import usual_settings

    try:
        return usual_settings(
            size=arguments.size,
            seconds=arguments.seconds,
            row_seconds=arguments.row_seconds,
            repeat=arguments.repeat,
            backend=arguments.backend,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _rows(text: str | None, *, tiny: bool = False) -> tuple[list[Row], list[Chosen]]:
    """Returns the rows that are asked for, and the models under peers: these only by name."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"--rows {text!r} has an empty part; name rows with commas between them, see --list")
    others = [part for part in parts if not is_peers(part)]
    try:
        peers = chosen_peers(part for part in parts if is_peers(part))
        return (chosen_rows(others, tiny=tiny) if others or not parts else []), peers
    except ValueError as error:
        raise UsageError(str(error)) from error


def _listed(text: str | None) -> tuple[Json, str]:
    """Returns the rows as JSON values and as text: without `text` all that can be asked for by name too."""
    rows, peers = _rows(text)
    if not text:
        peers = chosen_peers([PEERS])
    names, peer_names = [row.name for row in rows], [name for chosen in peers for name in chosen.names]
    told = [f"{group.name}: {group.model}, {group.clip}; about {group.minutes:g} min at full size" for group in GROUPS]
    return {"rows": names, "peers": peer_names}, "\n".join([*told, *listed_peers(), "", *names, *peer_names])


def _measure(arguments: argparse.Namespace, folder: Path, screen: Screen) -> Json:
    _rows(arguments.rows)  # wrong ones are refused before torch is loaded
    # Torch comes in here, and only here: `--list`, `--join` and every other command do without.
    from jobs.bench.run import environment, run_rows
    from pipeline.commands.bench_job import measure_job

    settings = _settings(arguments)
    ends = time.monotonic() + settings.seconds
    rows, peers = _rows(arguments.rows, tiny=settings.size == "tiny")
    here = environment(settings) | {"command": own_command(*sys.argv[1:])}
    (folder / LINES).write_text("")
    lines: list[Json] = []

    def tell(line: Json) -> None:
        lines.append(line)
        with (folder / LINES).open("a") as file:
            file.write(json.dumps(line) + "\n")
        _write(folder, document_of([here], lines, rows))
        screen.note(told(line))

    def run_job(row: Row) -> Json:
        return measure_job(row, settings, screen.note)

    if rows:
        run_rows(rows, settings, tell, run_job=run_job)
    if not peers:
        return document_of([here], lines, rows)

    def tell_peers(found: Json) -> None:
        _write(folder, document_of([here], lines, rows, found))

    found = bench_peers.measure_peers(peers, settings, here, ends=ends, tell=tell_peers, note=screen.note)
    return document_of([here], lines, rows, found)


def document_of(runs: Sequence[Json], lines: Sequence[Json], rows: Sequence[Row], peers: Json | None = None) -> Json:
    """Returns the JSON document: where it was measured, the rows, and what each way of running is worth by itself.

    `peers`: of trained models under peers and our plans, where they were asked for.
    """
    by_name = {row.name: row for row in rows}
    of_device: dict[str, list[tuple[Row, Json]]] = {}
    for line in lines:
        of_device.setdefault(runs[line.get("run", 0)]["device"], []).append((by_name[line["name"]], line))
    document: Json = {
        "schema": SCHEMA,
        "runs": list(runs),
        "groups": {group.name: group.model for group in GROUPS},
        "rows": list(lines),
        # Rows of different devices are never compared.
        "factors": [factor for mine in of_device.values() for factor in factors(mine)],
        "not_here": list(NOT_HERE),
    }
    return document if peers is None else document | {"peers": peers}


def joined(documents: Sequence[Json]) -> Json:
    """Joins what several runs wrote; of a row that several have, a measured one counts, and the last of those."""
    found: dict[str, Json] = {}
    runs: list[Json] = []
    for document in documents:
        for line in document["rows"]:
            if line["status"] == MEASURED or line["name"] not in found or found[line["name"]]["status"] != MEASURED:
                found[line["name"]] = line | {"run": line.get("run", 0) + len(runs)}
        runs += document["runs"]
    order = {row.name: row for row in [*all_rows(), *chosen_rows(list(found))]}
    peers = [document["peers"] for document in documents if "peers" in document]
    return document_of(
        runs,
        [found[name] for name in order if name in found],
        list(order.values()),
        joined_peers(peers) if peers else None,
    )


def _read(path: str, flag: str) -> Json:
    file = Path(path) / DOCUMENT if Path(path).is_dir() else Path(path)
    try:
        document: Json = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{flag} {path}: {error}; needs a {DOCUMENT} of `bench`, or its folder") from error
    if not isinstance(document, dict):
        raise UsageError(f"{flag} {path}: holds a JSON {type(document).__name__}; needs a {DOCUMENT} of `bench`")
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{flag} {path}: schema {document.get('schema')}, needs {SCHEMA}; measure it anew")
    if not (isinstance(document.get("rows"), list) and isinstance(document.get("runs"), list)):
        raise UsageError(f"{flag} {path}: has no lists of rows and runs; needs a {DOCUMENT} of `bench`")
    return document


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    write_result(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")
    write_result(folder / PAGE, bench_page(document))
    if "peers" in document:
        write_peers(document["peers"], folder)


def summary(document: Mapping[str, Any]) -> str:
    """Returns a line per row, as shown while measuring, and the factors."""
    worth = [
        f"{factor['group']} {factor['side']}: {factor['of']} {factor['factor']:.2f}x ({factor['from']} -> {factor['to']})"
        for factor in document["factors"]
    ]
    peers = bench_peers.summary(document["peers"]) if "peers" in document else []
    compared = document.get("against")
    older = (
        ["no row of the older table was measured on this kind of device"]
        if compared == []
        else map(shown, compared or ())
    )
    return "\n".join([*map(told, document["rows"]), *worth, *peers, *older])


def told(line: Mapping[str, Any]) -> str:
    """Returns one row as a line of text."""
    if line["status"] != MEASURED:
        return f"{line['name']:<44} {line['status']}: {line['why']}"
    spread = "" if line["spread"] is None else f" (spread {line['spread']:.3f})"
    memory = "" if line["peak_gb"] is None else f", {line['peak_gb']:.1f} GB"
    quality = line["quality"]
    alike = "" if quality is None or quality["identical"] else f", {quality['psnr_db']:.1f} dB of {quality['of']}"
    if alike and quality.get("clips", 1) > 1:
        alike += f" (worst {quality['worst_psnr_db']:.1f})"
    waited = "" if line.get("exposed_s") is None else f", waited {line['exposed_s']:.3f} s for exchanges"
    whole = f", {line['frames_per_second']:.2f} frames a second" if "frames_per_second" in line else ""
    found = f"{line['name']:<44} {line['seconds']:.3f} s{spread}{memory}{alike}{waited}{whole}"
    return f"{found}, warm-up {line['warm_up_s']:.1f} s"
