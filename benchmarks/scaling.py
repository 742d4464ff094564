"""Prints what a model of time expects of two, four and eight GPUs and of two nodes, beside what was measured.

Seconds of one GPU come from the documentation (H100, H200), or from files of `bench` or `benchmarks.many_gpus` (--bench FILE
...). Of several files, what one GPU took may be in another than what several did. Nothing is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.bench.groups import GROUPS
from jobs.bench.plan_files import rules_of
from jobs.bench.rows import IN_TURN, RECORDED, Row, parse_row
from jobs.settings import Mesh
from pab.broadcast.plan import make_plan
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
    """A clip whose time on one GPU is known, and perhaps on several.

    `seconds`: of denoising, by mesh; `recorded`: the same of recorded loops, which one GPU's is not; `in_turn`: of rows of
    guidance in turn, of which nothing is expected.
    `sent_bytes`: by mesh, what the first rank sent. `size`: height, width and frames; None for the family's default clip, as
    `num_steps` is.
    """

    title: str
    family: str
    broadcast: str
    heads: int | None
    seconds: Mapping[Mesh, float]
    num_steps: int | None = None
    measured_before: bool = True
    """Whether two GPUs were measured with the exchanges of before."""
    in_turn: Mapping[Mesh, float] = field(default_factory=dict)
    recorded: Mapping[Mesh, float] = field(default_factory=dict)
    sent_bytes: Mapping[Mesh, float] = field(default_factory=dict)
    size: tuple[int, int, int] | None = None

    def request(self, family: Family) -> ClipRequest:
        """Returns the clip."""
        usual = family.defaults
        height, width, num_frames = self.size or (usual.height, usual.width, usual.num_frames)
        return ClipRequest(
            prompt="", negative_prompt=None, seed=0, num_frames=num_frames, height=height, width=width, fps=usual.fps,
            num_steps=self.num_steps or usual.num_steps, guidance_scale=2.0,
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
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, none (H200)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 6.75, CFG2: 3.46, SP2: 4.01}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 (H200)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 5.24, CFG2: 2.69, SP2: 3.07}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 float8, before kernels with their ends (H200)", family="open_sora",
        broadcast="pab246", heads=16, seconds={Mesh(): 4.12, CFG2: 2.18, SP2: 2.45}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 float8 (H200)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 3.76, CFG2: 1.99}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 720p, 51 frames, PAB246 (H200)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 13.33, CFG2: 6.66, SP2: 7.47}, measured_before=False, size=(720, 1280, 51),
    ),
)  # fmt: skip
"""docs/performance.md: medians, denoising alone."""
FOUR = (
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, none (four H200)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 6.75, Mesh(cfg=2, sp=2): 2.86, Mesh(sp=4): 2.36}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 (four H200)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 5.24, Mesh(cfg=2, sp=2): 1.91, Mesh(sp=4): 2.18}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 float8 (four H200, the first of two runs)", family="open_sora",
        broadcast="pab246", heads=16, seconds={Mesh(): 3.76, Mesh(cfg=2, sp=2): 2.09}, measured_before=False,
    ),
)  # fmt: skip
"""Where the host is the limit: one clip each, whose steps differ by half."""
HALF, FIFTHS = (str(Path(__file__).with_name("plans") / f"open_sora_{name}.json") for name in ("half", "two_fifths"))
"""Plans that were searched for half and for two fifths of the calls."""
BOTH, SP4 = Mesh(cfg=2, sp=2), Mesh(sp=4)
ON_H100 = (
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, none (H100s, recorded)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 6.83}, recorded={BOTH: 2.16}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 (H100s, recorded)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 5.29, CFG2: 2.75, SP2: 3.16}, recorded={BOTH: 1.64}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 float8 (H100s, recorded)", family="open_sora", broadcast="pab246",
        heads=16, seconds={Mesh(): 3.94}, recorded={CFG2: 2.10, SP2: 2.45, BOTH: 1.29}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, half of the calls (H100s)", family="open_sora", broadcast=HALF, heads=16,
        seconds={Mesh(): 3.39, CFG2: 1.75, SP2: 2.07}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, half of the calls, float8 (H100s, recorded)", family="open_sora",
        broadcast=HALF, heads=16, seconds={Mesh(): 2.60}, recorded={CFG2: 1.39, SP2: 1.68, BOTH: 0.884},
        measured_before=False,
    ),
)  # fmt: skip
"""Two and four H100s; one card is one of them, or one of another machine."""
ON_H200 = (
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, none (H200s, recorded)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 6.61}, recorded={CFG2: 3.44, SP2: 4.03}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 (H200s, recorded)", family="open_sora", broadcast="pab246", heads=16,
        seconds={Mesh(): 5.24}, recorded={CFG2: 2.67}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, two fifths of the calls, float8 (H200s, recorded)", family="open_sora",
        broadcast=FIFTHS, heads=16, seconds={Mesh(): 2.03}, recorded={CFG2: 1.04, SP2: 1.26}, measured_before=False,
    ),
)  # fmt: skip
"""Two H200s, of which one card may be one of another machine."""

ON_FOUR_H200 = (
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, none (four H200, recorded)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 6.52}, recorded={SP4: 2.10}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, PAB246 (four H200, recorded)", family="open_sora", broadcast="pab246",
        heads=16, seconds={Mesh(): 5.24}, recorded={SP4: 1.57}, measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 480p, 51 frames, two fifths of the calls, float8 (four H200, recorded)", family="open_sora",
        broadcast=FIFTHS, heads=16, seconds={Mesh(): 1.95}, recorded={SP4: 0.676, BOTH: 0.668}, measured_before=False,
    ),
)  # fmt: skip
"""Four H200s of one machine; one card of PAB246 is of another."""
EIGHT_BIT = "products and attention of 8-bit floats (H200s)"
LARGE = (
    Clip(
        title=f"Wan 2.1 14B, 480p, 81 frames, 4 steps, none, {EIGHT_BIT}", family="wan_14b", broadcast="none", heads=40,
        seconds={Mesh(): 15.62, CFG2: 7.83, SP2: 8.59}, num_steps=4, size=(480, 832, 81), measured_before=False,
    ),
    Clip(
        title=f"Wan 2.1 14B, 480p, 81 frames, 4 steps, PAB2-6, {EIGHT_BIT}", family="wan_14b", broadcast="pab2-6", heads=40,
        seconds={Mesh(): 12.47, CFG2: 6.23, SP2: 6.81}, num_steps=4, size=(480, 832, 81), measured_before=False,
    ),
    Clip(
        title=f"Wan 2.1 14B, 720p, 81 frames, 2 steps, none, {EIGHT_BIT}", family="wan_14b", broadcast="none", heads=40,
        seconds={Mesh(): 29.86, CFG2: 14.94}, num_steps=2, size=(720, 1280, 81), measured_before=False,
    ),
    Clip(
        title="Wan 2.1 14B, 480p, 81 frames, 4 steps, none, 8-bit floats as they are now (one H100, four H200)",
        family="wan_14b", broadcast="none", heads=40, seconds={Mesh(): 14.11, BOTH: 3.83}, num_steps=4,
        size=(480, 832, 81), measured_before=False,
    ),
    Clip(
        title="Open-Sora 1.2, 720p, 204 frames, 6 steps, none (H200s)", family="open_sora", broadcast="none", heads=16,
        seconds={Mesh(): 13.54, CFG2: 6.83, SP2: 7.36}, num_steps=6, size=(720, 1280, 204), measured_before=False,
    ),
)  # fmt: skip
"""Two H200s of one machine, before 8-bit floats were mended, but for the clip that says otherwise; nothing is recorded."""


HEADS = {"open_sora": 16, "wan": 12, "wan_14b": 40}
"""Of groups of rows; those of others are taken to divide evenly."""


def from_bench(files: Sequence[Path]) -> list[Clip]:
    """Returns the clips of our compiled rows in files of `bench` or `many_gpus` that were measured on one GPU too."""
    groups = {group.name: group for group in GROUPS}
    found: dict[tuple[object, ...], Clip] = {}
    for file in files:
        document = json.loads(file.read_text())
        for line in document.get("lines", document.get("rows", [])):
            if line.get("side") == "ours" and line.get("status") == "measured" and line["group"] in groups:
                row = parse_row(groups[line["group"]], line["words"])
                if row.mode == "compiled" and row.mesh.dp == 1:
                    clip = _clip(row, line)
                    before = found.setdefault((clip.title, clip.size, clip.num_steps), clip)
                    found[clip.title, clip.size, clip.num_steps] = _with(before, row, line)
    return [clip for clip in found.values() if Mesh() in clip.seconds]


def _clip(row: Row, line: Mapping[str, Any]) -> Clip:
    alone = replace(row, mesh=Mesh(), options=tuple(word for word in row.options if word not in (IN_TURN, RECORDED)))
    clip = line.get("clip", {})
    size = (clip["height"], clip["width"], clip["num_frames"]) if clip else None
    shown = "" if size is None else f", {size[0]}x{size[1]}, {size[2]} frames, {clip['num_steps']} steps"
    return Clip(
        title=f"{row.group.model}: {alone.words}{shown}", family=row.group.family, broadcast=row.broadcast,
        heads=HEADS.get(row.group.name), seconds={}, measured_before=False, size=size, num_steps=clip.get("num_steps"),
    )  # fmt: skip


def _with(clip: Clip, row: Row, line: Mapping[str, Any]) -> Clip:
    if IN_TURN in row.options:
        return replace(clip, in_turn={**clip.in_turn, row.mesh: line["seconds"]})
    if RECORDED in row.options and row.mesh.num_ranks == 1:
        return clip
    sent = {row.mesh: 1e9 * line["sent_gb"]} if line.get("sent_gb") else {}
    clip = replace(clip, sent_bytes={**clip.sent_bytes, **sent})
    if RECORDED in row.options:
        return replace(clip, recorded={**clip.recorded, row.mesh: line["seconds"]})
    return replace(clip, seconds={**clip.seconds, row.mesh: line["seconds"]})


def predicted(
    clip: Clip, mesh: Mesh, nodes: int, *, copies: Copies = PACKED, recorded: bool = False
) -> Expected:  # fmt: skip
    """Returns what the model expects of a clip on a mesh."""
    family = FAMILIES[clip.family]
    request = clip.request(family)
    # As rows of `bench` are planned: by the rules alone, whatever the number of steps.
    plan = make_plan(rules_of(family, clip.broadcast), family.timesteps(request, "bfloat16"), family.sites)
    figures = replace(family.cost, precision="bfloat16")
    tokens = tokens_of(family, request, plan, figures, heads=clip.heads)
    assert tokens is not None, f"the width of {clip.family} is in its figures"
    return expected(clip.seconds[Mesh()], plan, tokens, mesh, copies=copies, nodes=nodes, recorded=recorded)


def checks(clip: Clip) -> Iterator[tuple[Mesh, float, float]]:
    """Yields each mesh that was measured, with its seconds and those that the model gives for how it was measured."""
    for mesh, seconds in clip.seconds.items():
        if mesh.num_ranks > 1:
            copies = BEFORE if clip.measured_before else PACKED
            yield mesh, seconds, predicted(clip, mesh, 1, copies=copies).seconds


def recorded_checks(clip: Clip) -> Iterator[tuple[Mesh, float, float]]:
    """Yields the same of recorded loops."""
    for mesh, seconds in clip.recorded.items():
        yield mesh, seconds, predicted(clip, mesh, 1, recorded=True).seconds


def table(clip: Clip) -> list[str]:
    """Returns the lines of a clip."""
    lines = [clip.title]
    alone_s = clip.seconds[Mesh()]
    told = [("", each) for each in checks(clip)] + [(f" {RECORDED}", each) for each in recorded_checks(clip)]
    for word, (mesh, seconds, model_s) in told:
        off = f"the model: {model_s:.2f} s ({model_s / seconds - 1:+.1%})"
        lines.append(f"  measured {_name(mesh)}{word}: {seconds:.2f} s; {off}, {alone_s / seconds:.2f}x one")
    for mesh, seconds in clip.in_turn.items():
        lines.append(f"  measured {_name(mesh)} {IN_TURN}: {seconds:.2f} s; no model, {alone_s / seconds:.2f}x one")
    for mesh, sent in clip.sent_bytes.items():
        expected_bytes = predicted(clip, mesh, 1).sent_bytes
        lines.append(f"  sent {_name(mesh)}: {sent / 1e9:.2f} GB; planned {expected_bytes / 1e9:.2f} GB")
    lines.append(
        f"  {'mesh':<16}{'seconds':>9}{'faster':>9}{'recorded':>10}{'faster':>9}{'exchanges':>11}{'host':>7}{'GB sent':>9}"
    )
    for mesh, nodes in MESHES:
        found, replayed = (predicted(clip, mesh, nodes, recorded=recorded) for recorded in (False, True))
        where = f"{_name(mesh)}" + (f", {nodes} nodes" if nodes > 1 else "")
        lines.append(
            f"  {where:<16}{found.seconds:>9.2f}{found.times_faster:>8.2f}x{replayed.seconds:>10.2f}"
            f"{replayed.times_faster:>8.2f}x{found.exchange_s:>11.2f}{found.host_s:>7.2f}{found.sent_bytes / 1e9:>9.1f}"
        )
    return lines


def _name(mesh: Mesh) -> str:
    return " ".join(f"{axis}{size}" for axis, size in (("cfg", mesh.cfg), ("sp", mesh.sp)) if size > 1)


def main(arguments: list[str] | None = None) -> None:
    """Prints a table for each clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bench", type=Path, nargs="+", metavar="FILE", help="JSON of `bench` or `many_gpus` with rows on one GPU"
    )
    options = parser.parse_args(arguments)
    for clip in (
        (*MEASURED, *FOUR, *ON_H100, *ON_H200, *ON_FOUR_H200, *LARGE)
        if options.bench is None
        else from_bench(options.bench)
    ):
        sys.stdout.write("\n".join(table(clip)) + "\n")


if __name__ == "__main__":
    main()
