"""What it costs that compiled kernels are chosen by rule instead of by timing, and what it is good for.

Inductor may cut the sums of a kernel in several ways, and by itself takes the one that is fastest when it tries them. Sums
that are cut in another way round in another way. Each row is rendered with both choices, from empty caches, and again in a
process whose timings are turned upside down (a setting that torch has for its own tests): that stands for a machine or a
moment in which other ways came out fastest. Told are the milliseconds of each kind of step, those of them that Inductor's
own kernels take (the others are the same kernels either way), and how far the latents of the processes are apart. On a
machine without a GPU tiny models run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rerun_difference import DISTORT, INVERSE, NORMAL, TIMINGS

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
LINES = "lines.json"
TIMED, BY_RULE = CHOICES = ("by timing", "by rule")


def measure_rows(rows: Sequence[str], folder: Path, *, num_steps: int, repeat: int, backend: str) -> bool:
    """Renders every row with both choices in this process; lines and latents are written into the folder as they come.

    A row that fails stops no other one. Returns whether none did.
    """
    lines: list[Json] = []
    failed = False
    for number, words in enumerate(rows):
        try:
            for line in measure_row(words, folder / str(number), num_steps=num_steps, repeat=repeat, backend=backend):
                lines.append(line)
                (folder / LINES).write_text(json.dumps(lines))
                print(json.dumps(line), flush=True)  # noqa: T201
        except (ValueError, RuntimeError) as error:
            failed = True
            sys.stderr.write(f"{words}: {type(error).__name__}: {error}\n")
    return not failed


def measure_row(words: str, beside: Path, *, num_steps: int, repeat: int, backend: str) -> Iterator[Json]:
    """Yields a line for each choice. `beside`: begins the names of the latents' files."""
    import torch
    from torch._inductor.utils import fresh_cache

    from jobs.bench.library_subjects import make_subject
    from jobs.bench.measure import OurClips, measure_ours
    from jobs.bench.subjects import FULL, TINY, precision_on
    from pab.execution import compiled
    from pab.parallel.mesh import NodeGroup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row = parsed(words)
    subject = make_subject(row.group.name, FULL if device.type == "cuda" else TINY, device)
    asked = replace(subject.requests[0], num_steps=num_steps)
    subject = replace(subject, requests=(asked,))
    execution = replace(row.execution(device.type, precision_on(device)), records=False)
    # Blocks are compiled below, with each choice.
    compiled.run_as(subject.model, replace(execution, compiled=False))
    group = NodeGroup(device=device)
    clips = OurClips(subject=subject, broadcast=row.broadcast, group=group, keep=execution.keep)
    for choice in CHOICES:
        options = compiled.INDUCTOR_OPTIONS if choice == BY_RULE else {}
        torch._dynamo.reset()
        with fresh_cache():
            compiled.compile_blocks(subject.model.block_stacks, backend=backend, options=options)
            found = measure_ours(subject, row, execution, group, repeat=repeat, enough_s=float("inf"))
            with compiled.executing(execution, precision=subject.precision), torch.inference_mode():
                own_ms = inductors_ms(lambda: clips.denoise(row.asked(asked))) / found.line["steps"]
        latents = beside.with_suffix(f".{CHOICES.index(choice)}.pt")
        torch.save(found.pictures[0].float(), latents)
        yield {
            "row": words, "choice": choice, "step_ms": found.line["step_ms"], "inductors_ms": own_ms,
            "latents": str(latents), "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__, "num_steps": found.line["steps"],
            "timings": torch._inductor.config.test_configs.distort_benchmarking_result or NORMAL,
        }  # fmt: skip


def inductors_ms(work: Callable[[], object]) -> float:
    """Returns the milliseconds that kernels which Inductor wrote take on the GPU in some work; 0 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as watched:
        work()
        torch.cuda.synchronize()
    own = [
        each for each in watched.key_averages() if each.key.startswith(("triton_red_", "triton_per_", "triton_poi_"))
    ]
    return sum(each.self_device_time_total for each in own) / 1e3


def parsed(words: str) -> Any:
    """Returns a row of `bench`. Raises ValueError for a group or word that is none, or a row that is not measured here."""
    from jobs.bench.groups import GROUPS
    from jobs.bench.rows import OURS, parse_row

    name, _, rest = words.partition(":")
    groups = {group.name: group for group in GROUPS}
    if name.strip() not in groups:
        raise ValueError(f"--rows {words!r}: {name.strip()!r}, allowed {', '.join(groups)}")
    row = parse_row(groups[name.strip()], rest)
    if row.side != OURS or row.mode != "compiled" or row.mesh.num_ranks > 1:
        raise ValueError(f"--rows {words!r}: only our own compiled rows on one rank are measured here")
    return row


def apart(one: str, other: str) -> float:
    """Returns how far two files of latents are apart, of their root mean square."""
    import torch

    first, second = torch.load(one), torch.load(other)
    return float((second - first).norm() / first.norm())


def compared(normal: Sequence[Mapping[str, Any]], inverse: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Returns a line per row and choice, with how far its latents are from those of the other process.

    None for a line that the other process lacks.
    """
    others = {(line["row"], line["choice"]): line for line in inverse}
    found: list[Json] = []
    for line in normal:
        other = others.get((line["row"], line["choice"]))
        figures = {key: value for key, value in line.items() if key != "latents"}
        figures["apart"] = None if other is None else apart(line["latents"], other["latents"])
        figures["other_timings"] = None if other is None else other["timings"]
        found.append(figures)
    return found


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the comparison in Markdown, of rows that were rendered with both choices.

    A cell with an arrow has the figure by timing, and then that by rule.
    """
    head = ["| row, step | ms | of these Inductor's own kernels | latents apart |", "|---|---|---|---|"]
    by_row: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        by_row.setdefault(line["row"], {})[line["choice"]] = line
    for words, choices in by_row.items():
        if len(choices) < len(CHOICES):
            continue
        timed, ruled = (choices[choice] for choice in CHOICES)
        own = f"{timed['inductors_ms']:.2f} -> {ruled['inductors_ms']:.2f} a step"
        off = " -> ".join(
            "not rendered" if each["apart"] is None else f"{each['apart']:.5f}" for each in (timed, ruled)
        )
        for pattern, ms in timed["step_ms"].items():
            head.append(f"| {words}, {pattern} | {ms:.1f} -> {ruled['step_ms'][pattern]:.1f} | {own} | {off} |")
    return "\n".join(head) + "\n"


def child(options: argparse.Namespace, timings: str, folder: Path) -> tuple[list[Json], bool]:
    """Measures in a process of its own, whose timings are as said. Returns its lines, and whether no row failed."""
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
    done = subprocess.run(words, check=False, env={**os.environ, DISTORT: timings})
    lines = folder / LINES
    return list(json.loads(lines.read_text())) if lines.exists() else [], done.returncode == 0


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


def main(arguments: list[str] | None = None) -> int:
    """Measures in two processes and prints the table. Returns 1 if a row failed, else 0."""
    known = parser()
    options = known.parse_args(arguments)
    rows = [words.strip() for words in options.rows.split(";")]
    try:
        for words in rows:
            parsed(words)
    except ValueError as error:
        known.error(str(error))
    if options.measure:
        asked = {"num_steps": options.num_steps, "repeat": options.repeat, "backend": options.backend}
        return int(not measure_rows(rows, options.out, **asked))
    options.out.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[Json]] = {NORMAL: [], INVERSE: []}
    whole = True
    with tempfile.TemporaryDirectory() as folder:
        for timings in TIMINGS:
            lines[timings], ended_well = child(options, timings, Path(folder) / (timings or "normal"))
            whole = whole and ended_well
            found = compared(lines[NORMAL], lines[INVERSE])
            (options.out / "kernels_by_rule.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))  # noqa: T201
    return int(not whole)


if __name__ == "__main__":
    sys.exit(main())
