"""Measures on several GPUs, in one call of a few minutes, what sharing a clip gives, and what exchanges cost.

Ranks start once. Rows are a model of `bench`, words (`none`, `pab246 float8`, the file of a plan), a mesh and a size of clip.
A mesh of fewer ranks than there are is rendered by several groups side by side: `one` on four ranks is also dp=4. Rows that
share a model and a mesh stand together, so that they share graphs; kernels lie in the cache on disk that jobs use too.
DIR/NAME.json is written after every row; --seconds ends it in time, and --go-on keeps the rows that it has. What one card
gave lies in DIR/one_card, so that a later call with the same DIR compares with it. On a machine without GPUs tiny models
run on processes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.rank_parts import Decoder, exchange_alone
from benchmarks.rank_rows import OneCard, RankRow, shown
from benchmarks.whole_files import write_whole
from jobs.bench.groups import GROUPS, Group
from jobs.bench.library_subjects import make_subject
from jobs.bench.ranks import meet
from jobs.bench.rows import IN_TURN, RECORDED, Row, parse_row
from jobs.bench.subjects import FULL, TINY, Subject, precision_on
from jobs.settings import Mesh
from pab.execution.choice import Execution
from pab.execution.compile_cache import compile_cache
from pab.execution.compiled import run_as
from pab.parallel.mesh import NodeGroup, SequenceParallel, open_group

Json = dict[str, Any]
Size = tuple[int, int, int]
ONE = "one"
"""The mesh of a single rank."""
MESHES = {2: (ONE, "cfg2", "sp2", f"sp2 {IN_TURN}"), 4: (ONE, "cfg2 sp2", "sp4", f"sp4 {IN_TURN}")}
"""By ranks; of other numbers `one` alone."""
PLANS = ("none", "pab246", "pab579", "pab246 float8")
PARTS = ("exchange", "rows", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all ranks get. `meet`, `file`, `one_card`: places; `ends`: by the clock of the host; `size`: of models.

    `rows`: words with their mesh, of the group `model`. `sizes`: height, width and frames of clips; None for the group's.
    """

    meet: str
    file: str
    one_card: str
    ranks: int
    device: str
    size: str
    backend: str
    repeat: int
    model: str
    rows: tuple[str, ...]
    sizes: tuple[Size | None, ...]
    num_steps: int | None
    parts: tuple[str, ...]
    ends: float
    known: tuple[Json, ...] = ()
    """Lines of an earlier call that are not measured again."""

    @property
    def parsed(self) -> list[Row]:
        """The rows. Raises ValueError naming a word that is none."""
        return [parse_row(group_named(self.model), words) for words in self.rows]

    def execution(self, row: Row) -> Execution:
        """Returns how a row is run: as in a job, but only a row that says `recorded` is."""
        execution = row.execution(self.device, precision_on(torch.device(self.device)))
        return replace(execution, records=RECORDED in row.options)


class Lines:
    """The lines of this call: rank 0 writes the file anew after each."""

    def __init__(self, work: Work, rank: int) -> None:
        self.work, self.rank = work, rank
        self.document: Json = {
            "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
            "torch": torch.__version__, "model": work.model, "size": work.size, "ranks": work.ranks,
            "num_steps": work.num_steps, "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "lines": list(work.known),
        }  # fmt: skip

    def add(self, name: str, measure: Callable[[], Json]) -> None:
        """Measures a line on all ranks, if time is left, or notes that none was: rank 0 says which, for all.

        A line of that name that an earlier call has measured is left as it is.
        """
        if any(line["name"] == name for line in self.work.known):
            return
        left = torch.tensor([self.work.ends - time.time()])
        dist.broadcast(left, src=0)
        began = time.perf_counter()
        line = measure() if left.item() > 0 else {"skipped": "no time left (--seconds)"}
        if self.rank == 0:
            line = {"name": name, **line, "took_s": round(time.perf_counter() - began, 2)}
            self.document["lines"].append(line)
            write_whole(Path(self.work.file), json.dumps(self.document, indent=1) + "\n")
            print(json.dumps(shown(line)), flush=True)  # noqa: T201


def measured_lines(document: Json) -> list[Json]:
    """Returns the lines of a call that tell figures, neither skipped nor failed, each with its device and when it began."""
    told = [line for line in document["lines"] if "skipped" not in line and line.get("status") != "failed"]
    return [{"device": document["device"], "began": document.get("began"), **line} for line in told]


def known_lines(work: Work) -> tuple[Json, ...]:
    """Returns what an earlier call has measured; nothing if it was of another model, size, or number of ranks or steps."""
    if not Path(work.file).exists():
        return ()
    document = json.loads(Path(work.file).read_text())
    asked = {"model": work.model, "size": work.size, "ranks": work.ranks, "num_steps": work.num_steps}
    return tuple(measured_lines(document)) if asked == {name: document.get(name) for name in asked} else ()


def group_named(model: str) -> Group:
    """Returns a group of rows. Raises ValueError for an unknown one."""
    found = {group.name: group for group in GROUPS}
    if model not in found:
        raise ValueError(f"--model {model!r}, allowed {', '.join(found)}")
    return found[model]


def run_rank(rank: int, work: Work) -> None:
    """Measures everything on one of the ranks, which meets the others."""
    measure_all(rank, work, meet(rank, work.ranks, work.device, work.meet))
    dist.destroy_process_group()


def measure_all(rank: int, work: Work, device: torch.device) -> None:
    """Measures everything on one of the ranks of the default group."""
    lines = Lines(work, rank)
    widths = [size for size in (1, 2, 4, 8) if work.ranks % size == 0 and size <= work.ranks]
    shared = {Mesh(sp=size) for size in widths if "decode" in work.parts or "exchange" in work.parts}
    groups = open_meshes(sorted({row.mesh for row in work.parsed} | shared, key=str), work.ranks, device)
    if "exchange" in work.parts:
        for size in widths[1:]:
            for rows in (2, 1):
                group = groups[Mesh(sp=size)]
                measured = partial(exchange_alone, group, rows, full=work.size == FULL, repeat=work.repeat)
                lines.add(f"exchange of {rows} rows, {size} ranks", measured)
    if "rows" in work.parts:
        render_rows(work, lines, groups, device)
    if "decode" in work.parts:
        decoder = Decoder(device, work.sizes[0], full=work.size == FULL, backend=work.backend)
        for size in widths:
            measured = partial(decoder.timed, groups[Mesh(sp=size)], repeat=work.repeat)
            lines.add(f"decode, {size} ranks", measured)


def open_meshes(meshes: list[Mesh], ranks: int, device: torch.device) -> dict[Mesh, NodeGroup]:
    """Opens a group of ranks for each mesh, with as many replicas as there are ranks for. Collective.

    Meshes that split a pass alike share the axis, whose name is part of compiled graphs.
    """
    found: dict[Mesh, NodeGroup] = {}
    passes: dict[int, SequenceParallel] = {}
    for mesh in meshes:
        if mesh.num_ranks == 1:
            found[mesh] = NodeGroup(device=device)
            continue
        group = open_group(dp=ranks // mesh.num_ranks, cfg=mesh.cfg, sp=mesh.sp, device=device)
        found[mesh] = replace(group, sp=passes.setdefault(mesh.sp, group.sp))
    return found


def render_rows(work: Work, lines: Lines, groups: Mapping[Mesh, NodeGroup], device: torch.device) -> None:
    """Adds a line for every row at every size. Rows of one model follow each other."""
    store = OneCard(Path(work.one_card), work.model)
    for execution, of_model in groupby(
        work.parsed, key=lambda row: replace(work.execution(row), keep="full", records=False)
    ):
        torch._dynamo.reset()
        subject = make_subject(work.model, work.size, device)
        run_as(subject.model, execution, backend=work.backend)
        for row, resized in ordered(list(of_model), work.sizes, subject, work.num_steps):
            if row is None:
                # A block looks through all graphs of its kind: those of other meshes and sizes would make it slower.
                torch._dynamo.reset()
                continue
            measured = RankRow(
                subject=resized, row=row, execution=work.execution(row), group=groups[row.mesh], store=store,
                model_size=work.size,
            )  # fmt: skip
            height, width, frames = measured.clip_size
            lines.add(f"{row.words}, {height}x{width}x{frames}", partial(measured.measure, repeat=work.repeat))
        del subject
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def ordered(
    rows: list[Row], sizes: tuple[Size | None, ...], subject: Subject, num_steps: int | None
) -> Iterator[tuple[Row | None, Subject]]:
    """Yields the rows with a model that renders the asked clip, by size, by mesh; None where a size or a mesh begins."""
    for size in sizes:
        request = subject.requests[0]
        if size is not None:
            request = replace(request, height=size[0], width=size[1], num_frames=size[2])
        request = replace(request, num_steps=num_steps or request.num_steps)
        resized = replace(subject, requests=(request,))
        for place in dict.fromkeys((row.mesh, IN_TURN in row.options) for row in rows):
            yield None, resized
            for row in rows:
                if (row.mesh, IN_TURN in row.options) == place:
                    yield row, resized


def size_of(text: str) -> Size:
    """Reads HEIGHTxWIDTHxFRAMES. Raises argparse's error."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}, needs HEIGHTxWIDTHxFRAMES such as 480x848x51")
    height, width, frames = map(int, parts)
    return height, width, frames


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--out", type=Path, required=True, metavar="DIR")
    found.add_argument("--name", default="many_gpus", help="of the JSON file in DIR (default: %(default)s)")
    found.add_argument("--ranks", type=int, metavar="N", help="default: all GPUs; without any 2 processes")
    found.add_argument("--model", default="open_sora", help="a group of rows of `bench` (default: %(default)s)")
    found.add_argument("--plans", default=",".join(PLANS), help="words of rows of `bench` (default: %(default)s)")
    found.add_argument(
        "--meshes", help=f"of {ONE}, cfg2, sp2, 'cfg2 sp2', 'sp4 {IN_TURN}', ... (default: by the number of ranks)"
    )
    found.add_argument("--sizes", help="HEIGHTxWIDTHxFRAMES, ... (default: the group's clip)")
    found.add_argument("--num-steps", type=int, metavar="K", help="fewer; a whole clip is then told by its steps")
    found.add_argument("--repeat", type=int, default=2, help="clips of a row after warm-up; medians are told")
    found.add_argument("--seconds", type=float, default=500, help="begin no further row after this long")
    found.add_argument("--go-on", action="store_true", help="keep what DIR/NAME.json has measured, measure the rest")
    found.add_argument("--parts", default=",".join(PARTS), help="of: %(default)s; decode is of Open-Sora alone")
    found.add_argument("--mode", default="compiled", choices=("compiled", "eager"))
    found.add_argument("--cache", metavar="DIR", help="of compiled kernels (default: the node's, as jobs have it)")
    found.add_argument(
        "--high-priority", action="store_true", help="NCCL's kernels go before others: what rows in turn may need"
    )
    return found


def work_of(options: argparse.Namespace, folder: str) -> Work:
    """Returns what ranks get. Raises ValueError for words, sizes or meshes that cannot be."""
    cuda = torch.cuda.is_available()
    ranks = options.ranks or (torch.cuda.device_count() if cuda else 2)
    if cuda and torch.cuda.device_count() < ranks:
        raise ValueError(f"--ranks {ranks}, found {torch.cuda.device_count()} GPUs")
    meshes = options.meshes.split(",") if options.meshes else MESHES.get(ranks, (ONE,))
    work = Work(
        meet=f"{folder}/meet",
        file=str(options.out / f"{options.name}.json"),
        one_card=str(options.out / "one_card"),
        ranks=ranks,
        device="cuda" if cuda else "cpu",
        size=FULL if cuda else TINY,
        backend="inductor" if cuda else "eager",
        repeat=options.repeat,
        model=options.model,
        rows=tuple(
            f"{options.mode} {plan} {'' if mesh.strip() == ONE else mesh}"
            for plan in options.plans.split(",")
            for mesh in meshes
        ),
        sizes=tuple(map(size_of, options.sizes.split(","))) if options.sizes else (None,),
        num_steps=options.num_steps,
        parts=tuple(options.parts.split(",")),
        ends=time.time() + options.seconds,
    )
    if options.go_on:
        work = replace(work, known=known_lines(work))
    for row in work.parsed:
        if ranks % row.mesh.num_ranks:
            raise ValueError(f"--meshes {row.mesh}: {ranks} ranks are no multiple of its {row.mesh.num_ranks}")
    if unknown := set(work.parts) - set(PARTS):
        raise ValueError(f"--parts {unknown.pop()!r}, allowed {', '.join(PARTS)}")
    return work


def main(arguments: list[str] | None = None) -> None:
    """Starts the ranks."""
    known = parser()
    options = known.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            work = work_of(options, folder)
        except (ValueError, argparse.ArgumentTypeError) as error:
            known.error(str(error))
        options.out.mkdir(parents=True, exist_ok=True)
        if options.high_priority:
            os.environ["TORCH_NCCL_HIGH_PRIORITY"] = "1"
        with kernels_on_disk(work, options.cache):
            start_processes(run_rank, args=(work,), nprocs=work.ranks, start_method="spawn")


@contextlib.contextmanager
def kernels_on_disk(work: Work, place: str | None) -> Iterator[None]:
    """Has the ranks take compiled kernels from the cache that jobs use, and share the machine's cores while they compile."""
    if work.backend != "inductor":
        yield
        return
    threads = max(1, (os.cpu_count() or 1) // work.ranks)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    preferred = "-".join(sorted({work.execution(row).attention for row in work.parsed}))
    with compile_cache(place, preferred):
        yield


if __name__ == "__main__":
    main()
