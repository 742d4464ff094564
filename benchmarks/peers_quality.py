"""Peers beside our presets and plans on the same trained weights: what is computed, how long it takes, what videos lose.

Every setting renders the same prompts, which training left out, with the same seeds, noise and sampler. Each clip is
compared with itself, rendered in the same way with everything computed. Settings that decide by what they see of a clip
render one clip at a time; the others all clips in one batch. Seconds are those of a batch that fills the device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peer_clips import Clips, fullest_batch, timed
from benchmarks.peer_files import joined, rows_by_setting, untimed
from benchmarks.peer_methods import CACHE_DIT, OURS, Setting, cache_dit_is_here, mag_ratios, our_settings, peer_settings
from benchmarks.peer_picture import picture
from jobs.bench.run import BenchSettings, environment
from jobs.quality.alike import Frames
from jobs.quality.compare import alike_facts
from pab.broadcast.rules import NO_BROADCAST, Rules, rules_from_dict
from pab.families import FAMILIES
from pab.families.demo.training.check import held_out_prompts
from pab.family import ClipRequest, Family, LoadRequest

Json = dict[str, Any]
MEASURES = ("psnr_db", "ssim", "vmaf")
_CALIBRATION_SEED, _CLIPS_SEED = 7, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes `peers.json`, `peers.md` and `peers.svg` into --out after every setting."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_quality", description=__doc__)
    parser.add_argument("--families", default="demo_wan,demo", help="with weights of their own: FAMILY=FOLDER")
    parser.add_argument("--clips", type=int, default=16, help="prompts that training left out")
    parser.add_argument("--steps", type=int, help="the family's own unless given")
    parser.add_argument(
        "--plans", type=Path, nargs="*", default=[], help="plan files; each is for the family that it names"
    )
    parser.add_argument("--only", help="a part of the settings' names")
    parser.add_argument("--size", help="FRAMESxHEIGHTxWIDTH, the family's own unless given")
    parser.add_argument("--precision", help="the family's own unless given")
    parser.add_argument("--max-batch", type=int, default=64, help="clips of the largest batch that is timed")
    parser.add_argument("--threads", type=int, default=4, help="of comparing clips")
    parser.add_argument(
        "--join",
        type=Path,
        nargs="*",
        help="peers.json of other calls: one table and picture of all of them; of the same model, a later file's rows "
        "replace those of an earlier one, and rows that it lacks lose their seconds",
    )
    parser.add_argument(
        "--again",
        type=Path,
        help="a peers.json whose rows are timed again; their quality is kept, also of rows that the call does not reach",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    options = parser.parse_args(arguments)
    if options.join:
        write(joined([json.loads(path.read_text()) for path in options.join]), options.out)
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = BenchSettings(size="full", device=device, backend="none", repeat=1, seconds=0, row_seconds=0)
    found: Json = {"environment": environment(size), "cache_dit": cache_dit_is_here(), "models": []}
    before = [untimed(json.loads(options.again.read_text()))] if options.again else []
    with torch.inference_mode():
        for name in options.families.split(","):
            model: Json = {"rows": []}
            for part in measure(name, options, torch.device(device)):
                # After every setting, so that a call that is cut short leaves what it has measured.
                model |= {**part, "rows": [*model["rows"], *part["rows"]]}
                write(joined([*before, {**found, "models": [*found["models"], model]}]), options.out)
            found["models"].append(model)
    sys.stdout.write(table(joined([*before, found])))
    return 0


def write(found: Json, folder: Path) -> None:
    """Writes figures, table and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(found, indent=1))
    (folder / "peers.md").write_text(table(found))
    (folder / "peers.svg").write_text(picture(found["models"]))


def measure(named: str, options: argparse.Namespace, device: torch.device) -> Iterator[Json]:
    """Yields what a model is and, one by one, what its settings did."""
    name, _, weights = named.partition("=")
    family = FAMILIES[name]
    precision = options.precision or family.precisions[0]
    model = family.load(LoadRequest(weights=weights or None, precision=precision, device=str(device)))
    clips = Clips(family=family, model=model, precision=precision, device=device)
    requests = requests_of(family, options.clips, _CLIPS_SEED, options)
    num_steps = requests[0].num_steps
    settings = our_settings(family, num_steps, plans_of(family, options.plans))
    if clips.has_peers:
        clips.watch(requests[0])
        asked = requests_of(family, 2, _CALIBRATION_SEED, options)
        clips.ratios = mag_ratios(lambda put: clips.pipeline(put)(asked), num_steps)
        settings += peer_settings(num_steps, clips.num_blocks)
    settings = [setting for setting in settings if (options.only or "") in setting.name]
    many = requests_of(family, options.max_batch, _CLIPS_SEED, options)
    batch = fullest_batch(clips.ours(NO_BROADCAST), many, device)
    sys.stderr.write(f"{name}: {len(settings)} settings; {batch} clips fill the device\n")
    known = rows_by_setting(options.again, name) if options.again else {}
    with ThreadPoolExecutor(options.threads) as pool:
        rows = _Rows(clips=clips, requests=requests, batch=many[:batch], pool=pool, known=known)
        told = {
            "family": name, "clips": len(requests), "batch": batch, "precision": precision,
            "clip": {key: getattr(requests[0], key) for key in ("num_frames", "height", "width", "num_steps")},
        }  # fmt: skip
        for setting in settings:
            yield {**told, "rows": [rows.row(setting)]}


def requests_of(family: Family, count: int, seed: int, options: argparse.Namespace) -> list[ClipRequest]:
    """Returns clips of prompts that training left out."""
    usual = family.defaults
    size = options.size.split("x") if options.size else (usual.num_frames, usual.height, usual.width)
    num_frames, height, width = map(int, size)
    return [
        ClipRequest(
            prompt=prompt, negative_prompt=None, seed=number, num_frames=num_frames, height=height, width=width,
            fps=usual.fps, num_steps=options.steps or usual.num_steps, guidance_scale=usual.guidance_scale,
        )
        for number, (prompt, _) in enumerate(held_out_prompts(count, seed=seed))
    ]  # fmt: skip


def plans_of(family: Family, files: Sequence[Path]) -> list[tuple[str, Rules]]:
    """Returns the plans of files that are for a family, or for any."""
    plans = [(path.stem, rules_from_dict(json.loads(path.read_text()))) for path in files]
    return [(name, rules) for name, rules in plans if getattr(rules, "family", None) in (None, family.name)]


class _Rows:
    """Measures a model's settings one after another; clips with everything computed are rendered once for each way."""

    def __init__(
        self,
        *,
        clips: Clips,
        requests: list[ClipRequest],
        batch: list[ClipRequest],
        pool: ThreadPoolExecutor,
        known: Mapping[tuple[str, str, str], Json],
    ) -> None:
        self.clips, self.requests, self.batch, self.pool, self.known = clips, requests, batch, pool, known
        self.whole: dict[tuple[bool, bool, bool], tuple[list[Frames], float]] = {}
        self.whole_seconds: dict[tuple[bool, bool], float] = {}

    def row(self, setting: Setting) -> Json:
        """Returns a setting's figures, or why there are none."""
        line: Json = {"side": setting.side, "method": setting.method, "setting": setting.words, "why": None}
        try:
            line |= self._measured(setting)
        except (
            RuntimeError,
            ValueError,
            AssertionError,
            TypeError,
        ) as error:  # what a peer says of a model it does not fit
            line["why"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        sys.stderr.write(json.dumps({key: value for key, value in line.items() if key not in MEASURES}) + "\n")
        return line

    def _measured(self, setting: Setting) -> Json:
        clips, run = self.clips, self.clips.under(setting)
        before = self.known.get((setting.side, setting.method, setting.words))
        if before is not None:
            return {**before, **self._times(setting)}
        frames, operations = self._rendered(run, one_by_one=setting.watches)
        whole, all_operations = self._whole(setting)
        found = list(self.pool.map(alike_facts, whole, frames))
        measures = {name: _spread([clip[name] for clip in found]) for name in MEASURES}
        line = {"operations": operations / all_operations, **self._times(setting), **measures}
        if setting.watches:
            # In a batch its clips decide together.
            batched = clips.counted(run, self.batch)[1] / len(self.batch)
            line["batch_operations"] = batched / (all_operations / len(self.requests))
        return line

    def _times(self, setting: Setting) -> Json:
        clips, key = self.clips, (setting.side == OURS, setting.one_pass)
        if key not in self.whole_seconds:
            self.whole_seconds[key] = timed(clips.without_reuse(setting), self.batch, clips.device) / len(self.batch)
        seconds = timed(clips.under(setting), self.batch, clips.device) / len(self.batch)
        return {"clip_s": seconds, "whole_clip_s": self.whole_seconds[key]}

    def _rendered(self, run: Any, *, one_by_one: bool) -> tuple[list[Frames], float]:
        parts = [[request] for request in self.requests] if one_by_one else [self.requests]
        done: list[tuple[Tensor, float]] = [self.clips.counted(run, part) for part in parts]
        latents = torch.cat([each for each, _ in done])
        return self.clips.decoded(latents, self.requests), sum(operations for _, operations in done)

    def _whole(self, setting: Setting) -> tuple[list[Frames], float]:
        key = setting.side == OURS, setting.one_pass, setting.watches
        if key not in self.whole:
            self.whole[key] = self._rendered(self.clips.without_reuse(setting), one_by_one=setting.watches)
        return self.whole[key]


def _spread(values: Sequence[float | None]) -> Json:
    """Returns median and worst; a clip that came out the same has no PSNR or VMAF, and is better than all that have."""
    known = sorted(value for value in values if value is not None)
    ordered: list[float | None] = [*known, *(None for value in values if value is None)]
    return {"median": ordered[(len(ordered) - 1) // 2], "worst": ordered[0], "clips": list(values)}


def at_share(rows: Sequence[Mapping[str, Any]], share: float) -> dict[str, float]:
    """Returns each method's median PSNR at a share of operations, on the line between the settings on both sides of it."""
    found: dict[str, float] = {}
    for method in dict.fromkeys(f"{row['side']} {row['method']}" for row in rows):
        points = sorted(
            (row["operations"], row["psnr_db"]["median"])
            for row in rows
            if f"{row['side']} {row['method']}" == method
            and row["why"] is None
            and row["psnr_db"]["median"] is not None
        )
        below = [point for point in points if point[0] <= share]
        above = [point for point in points if point[0] >= share]
        if below and above:
            (x0, y0), (x1, y1) = max(below), min(above)
            found[method] = y0 if x0 == x1 else y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    return found


def table(found: Json) -> str:
    """Returns all rows as tables in Markdown, and who is best at half of the operations."""
    lines: list[str] = []
    for model in found["models"]:
        clip, batch = model["clip"], model["batch"]
        device = model.get("device", found["environment"]["device"])
        head = (
            f"`{model['family']}`: {model['clips']} held-out prompts, {clip['num_frames']} frames of {clip['height']}x"
            f"{clip['width']}, {clip['num_steps']} steps, {model['precision']}; {device}, seconds "
            f"of a clip in a batch of {batch}. Median (worst) of the clips."
        )
        lines += [
            head,
            "",
            "| whose | method | setting | operations | s a clip | as fast | PSNR, dB | SSIM | VMAF |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        rows = sorted(model["rows"], key=lambda row: (row["side"], row["method"], -row.get("operations", 0)))
        lines += [_cells(row) for row in rows]
        best = sorted(at_share(rows, 0.5).items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{method} {psnr:.1f} dB" for method, psnr in best)
        lines += ["", f"At half of the operations, between the settings on both sides of it: {told or 'none'}.", ""]
    if not found["cache_dit"]:
        lines += [f"{CACHE_DIT} is not installed: pip install cache-dit.", ""]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> str:
    head = f"| {row['side']} | {row['method']} | {row['setting']} | "
    if row["why"] is not None:
        return f"{head}{row['why']} | | | | | |"
    told = [
        "same"
        if row[name]["worst"] is None
        else f"{_told(row[name]['median'], form)} ({_told(row[name]['worst'], form)})"
        for name, form in zip(MEASURES, (".1f", ".4f", ".0f"), strict=True)
    ]
    share = f"{row['operations']:.1%}"
    if "batch_operations" in row:
        share += f" (batch {row['batch_operations']:.1%})"
    seconds, whole = row["clip_s"], row["whole_clip_s"]
    times = "- | -" if seconds is None else f"{seconds:.4f} | {whole / seconds:.2f}x"
    return f"{head}{share} | {times} | {' | '.join(told)} |"


def _told(value: float | None, form: str) -> str:
    return "same" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
