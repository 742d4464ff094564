"""What it costs that compiled kernels are chosen by rule instead of by timing, and what it is good for.

Inductor may cut the sums of a kernel in several ways, and by itself takes the one that is fastest when it tries them. Sums
that are cut in another way round in another way. Each row is rendered with both choices, from empty caches, and again in a
process whose timings are turned upside down (a setting that torch has for its own tests): that stands for a machine or a
moment in which other ways came out fastest. Told are the milliseconds of each kind of step, and how far the latents of
the processes are apart. On a machine without a GPU tiny models run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.rerun_difference import DISTORT, NORMAL, TIMINGS

Json = dict[str, Any]
ROWS = (
    "wan_14b: compiled none float8 attention8",
    "wan: compiled none",
    "open_sora: compiled none",
    "open_sora: compiled pab246 float8",
    "ltx: compiled none",
    "cogvideox: compiled none",
    "hunyuan_video: compiled none",
)
TIMED, BY_RULE = CHOICES = ("by timing", "by rule")


def measured(rows: Sequence[str], folder: Path, *, num_steps: int, repeat: int, backend: str) -> list[Json]:
    """Renders every row with both choices in this process; latents are written into the folder."""
    import torch
    from torch._inductor.utils import fresh_cache

    from jobs.bench.library_subjects import make_subject
    from jobs.bench.measure import measure_ours
    from jobs.bench.subjects import FULL, TINY, precision_on
    from pab.execution import compiled
    from pab.parallel.mesh import NodeGroup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines: list[Json] = []
    for words in rows:
        row = parsed(words)
        subject = make_subject(row.group.name, FULL if device.type == "cuda" else TINY, device)
        asked = replace(subject.requests[0], num_steps=num_steps)
        subject = replace(subject, requests=(asked,))
        execution = replace(row.execution(device.type, precision_on(device)), records=False)
        for choice in CHOICES:
            options = compiled.INDUCTOR_OPTIONS if choice == BY_RULE else {}
            torch._dynamo.reset()
            with mock.patch.object(compiled, "INDUCTOR_OPTIONS", options), fresh_cache():
                # The model is as it was after the first choice; only how its blocks compile is told again.
                if choice == CHOICES[0]:
                    compiled.run_as(subject.model, execution, backend=backend)
                else:
                    compiled.compile_blocks(subject.model.block_stacks, backend=backend)
                found = measure_ours(
                    subject, row, execution, NodeGroup(device=device), repeat=repeat, enough_s=float("inf")
                )
            place = folder / f"{len(lines)}.pt"
            torch.save(found.pictures[0].float(), place)
            line = {
                "row": words, "choice": choice, "step_ms": found.line["step_ms"], "warm_up_s": found.line["warm_up_s"],
                "latents": str(place), "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                "torch": torch.__version__, "num_steps": num_steps,
            }  # fmt: skip
            lines.append(line)
            print(json.dumps(line), flush=True)  # noqa: T201
        del subject
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return lines


def parsed(words: str) -> Any:
    """Returns a row of `bench`. Raises ValueError for a group or a word that is none."""
    from jobs.bench.groups import GROUPS
    from jobs.bench.rows import parse_row

    name, _, rest = words.partition(":")
    groups = {group.name: group for group in GROUPS}
    if name.strip() not in groups:
        raise ValueError(f"--rows {words!r}: {name.strip()!r}, allowed {', '.join(groups)}")
    return parse_row(groups[name.strip()], rest)


def apart(one: str, other: str) -> float:
    """Returns how far two files of latents are apart, of their root mean square."""
    import torch

    first, second = torch.load(one), torch.load(other)
    return float((second - first).norm() / first.norm())


def compared(normal: Sequence[Mapping[str, Any]], inverse: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Returns a line per row and choice, with how far its latents are from those of the other process."""
    others = {(line["row"], line["choice"]): line["latents"] for line in inverse}
    return [
        {key: value for key, value in line.items() if key != "latents"}
        | {"apart": apart(line["latents"], others[line["row"], line["choice"]])}
        for line in normal
        if (line["row"], line["choice"]) in others
    ]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the comparison in Markdown: milliseconds of each kind of step, and how far latents are apart."""
    head = [
        "| row, step | ms by timing | ms by rule | slower | apart by timing | apart by rule |",
        "|---|---|---|---|---|---|",
    ]
    by_row: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        by_row.setdefault(line["row"], {})[line["choice"]] = line
    for words, choices in by_row.items():
        timed, ruled = choices[TIMED], choices[BY_RULE]
        for pattern, ms in timed["step_ms"].items():
            mine = ruled["step_ms"][pattern]
            head.append(
                f"| {words}, {pattern} | {ms:.1f} | {mine:.1f} | {mine / ms - 1:+.2%} "
                f"| {timed['apart']:.5f} | {ruled['apart']:.5f} |"
            )
    return "\n".join(head) + "\n"


def child(options: argparse.Namespace, timings: str, folder: Path) -> list[Json]:
    """Measures in a process of its own, whose timings are as said. Raises CalledProcessError."""
    folder.mkdir(parents=True)
    repeat = options.repeat if timings == NORMAL else 1
    words = [
        *(
            sys.executable,
            "-m",
            "benchmarks.kernels_by_rule",
            "--out",
            str(folder),
            "--measure",
            "--rows",
            options.rows,
        ),
        *("--num-steps", str(options.num_steps), "--repeat", str(repeat), "--backend", options.backend),
    ]
    subprocess.run(words, check=True, env={**os.environ, DISTORT: timings})
    return list(json.loads((folder / "lines.json").read_text()))


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--out", type=Path, required=True, metavar="DIR")
    found.add_argument(
        "--rows", default="; ".join(ROWS), help="GROUP: WORDS of bench, parted by ; (default: %(default)s)"
    )
    found.add_argument("--num-steps", type=int, default=3, metavar="K", help="of each clip (default: %(default)s)")
    found.add_argument("--repeat", type=int, default=3, help="timed clips of a row; medians are told")
    found.add_argument("--backend", default="inductor", help="of compiled blocks (default: %(default)s)")
    found.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measures in two processes and prints the table."""
    known = parser()
    options = known.parse_args(arguments)
    rows = [words.strip() for words in options.rows.split(";")]
    try:
        for words in rows:
            parsed(words)
    except ValueError as error:
        known.error(str(error))
    if options.measure:
        lines = measured(rows, options.out, num_steps=options.num_steps, repeat=options.repeat, backend=options.backend)
        (options.out / "lines.json").write_text(json.dumps(lines))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = compared(*(child(options, timings, Path(folder) / (timings or "normal")) for timings in TIMINGS))
    (options.out / "kernels_by_rule.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))  # noqa: T201


if __name__ == "__main__":
    main()
