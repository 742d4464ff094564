"""Prints what a model of time expects of two, four and eight GPUs and of two nodes, beside what was measured of two.

Seconds of one GPU come from the documentation (H100, H200), or from rows of `bench` (--bench FILE). Nothing is run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.bench.rows import GROUPS, parse_row
from jobs.settings import Mesh
from pab.families import FAMILIES
from pab.family import ClipRequest, Family
from pipeline.planning.scaling import BEFORE, PACKED, Copies, Expected, expected, tokens_of

MESHES = (
    (Mesh(cfg=2), 1), (Mesh(sp=2), 1), (Mesh(cfg=2, sp=2), 1), (Mesh(sp=4), 1), (Mesh(cfg=2, sp=4), 1),
    (Mesh(sp=8), 1), (Mesh(cfg=2, sp=8), 2), (Mesh(sp=16), 2),
)  # fmt: skip
"""Each with its nodes."""
CFG2, SP2 = Mesh(cfg=2), Mesh(sp=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip whose time on one GPU is known, and perhaps on two. `seconds`: of denoising, by mesh."""

    title: str
    family: str
    broadcast: str
    heads: int
    seconds: Mapping[Mesh, float]
    num_steps: int | None = None
    measured_before: bool = True
    """Whether two GPUs were measured with the exchanges of before."""

    def request(self, family: Family) -> ClipRequest:
        """Returns the clip: the family's default."""
        usual = family.defaults
        return ClipRequest(
            prompt="", negative_prompt=None, seed=0, num_frames=usual.num_frames, height=usual.height,
            width=usual.width, fps=usual.fps, num_steps=self.num_steps or usual.num_steps, guidance_scale=2.0,
        )  # fmt: skip


MEASURED = (
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, none (H100)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 7.07, CFG2: 3.63, SP2: 4.38},
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 (H100)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 5.50, CFG2: 2.80, SP2: 3.31},
    ),
    Clip(
        title="Wan 2.1 1.3B, 480p, 81 frames, 10 steps, none (H200)", family="wan", broadcast="none", heads=12,
        seconds={Mesh(): 8.83, CFG2: 4.46, SP2: 4.92}, num_steps=10,
    ),
)  # fmt: skip
"""docs/performance.md: medians, denoising alone."""


def from_bench(file: Path) -> list[Clip]:
    """Returns the clips of Open-Sora's compiled rows in a `bench.json` that were measured on one GPU."""
    group = next(group for group in GROUPS if group.name == "open_sora")
    found: dict[str, dict[Mesh, float]] = {}
    for line in json.loads(file.read_text())["rows"]:
        if line["group"] == group.name and line["side"] == "ours" and line["status"] == "measured":
            row = parse_row(group, line["words"])
            if row.mode == "compiled" and not row.options:
                found.setdefault(row.broadcast, {})[row.mesh] = line["seconds"]
    return [
        Clip(
            title=f"Open-Sora 1.2, {name} ({file})", family="open_sora", broadcast=name, heads=16, seconds=seconds,
            measured_before=False,
        )
        for name, seconds in found.items()
        if Mesh() in seconds
    ]  # fmt: skip


def predicted(clip: Clip, mesh: Mesh, nodes: int, *, copies: Copies = PACKED, in_turn: bool = False) -> Expected:
    """Returns what the model expects of a clip on a mesh."""
    family = FAMILIES[clip.family]
    request = clip.request(family)
    plan = family.plan(request, family.presets[clip.broadcast], "bfloat16")
    figures = replace(family.cost, precision="bfloat16")
    tokens = tokens_of(family, request, plan, figures, heads=clip.heads)
    assert tokens is not None, f"the width of {clip.family} is in its figures"
    return expected(
        clip.seconds[Mesh()], plan, tokens, mesh, copies=copies, nodes=nodes, in_turn=in_turn
    )  # fmt: skip


def checks(clip: Clip) -> Iterator[tuple[Mesh, float, float]]:
    """Yields each mesh that was measured, with its seconds and those that the model gives for how it was measured."""
    for mesh, seconds in clip.seconds.items():
        if mesh.num_ranks > 1:
            copies = BEFORE if clip.measured_before else PACKED
            yield mesh, seconds, predicted(clip, mesh, 1, copies=copies).seconds


def table(clip: Clip) -> list[str]:
    """Returns the lines of a clip."""
    lines = [clip.title]
    lines += [
        f"  measured {_name(mesh)}: {seconds:.2f} s; the model: {model_s:.2f} s ({model_s / seconds - 1:+.1%})"
        for mesh, seconds, model_s in checks(clip)
    ]
    lines.append(f"  {'mesh':<16}{'seconds':>9}{'faster':>9}{'exchanges':>11}{'GB sent':>9}{'in turn, s':>12}")
    for mesh, nodes in MESHES:
        found = predicted(clip, mesh, nodes)
        turns = mesh.cfg == 1 and FAMILIES[clip.family].rows_in_turn
        turn = predicted(clip, mesh, nodes, in_turn=True) if turns else found
        where = f"{_name(mesh)}" + (f", {nodes} nodes" if nodes > 1 else "")
        lines.append(
            f"  {where:<16}{found.seconds:>9.2f}{found.times_faster:>8.2f}x{found.exchange_s:>11.2f}"
            f"{found.sent_bytes / 1e9:>9.1f}" + (f"{turn.seconds:>12.2f}" if turn is not found else f"{'-':>12}")
        )
    return lines


def _name(mesh: Mesh) -> str:
    return " ".join(f"{axis}{size}" for axis, size in (("cfg", mesh.cfg), ("sp", mesh.sp)) if size > 1)


def main(arguments: list[str] | None = None) -> None:
    """Prints a table for each clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, metavar="FILE", help="a bench.json with rows of open_sora on one GPU")
    options = parser.parse_args(arguments)
    for clip in MEASURED if options.bench is None else from_bench(options.bench):
        print("\n".join(table(clip)))  # noqa: T201


if __name__ == "__main__":
    main()
