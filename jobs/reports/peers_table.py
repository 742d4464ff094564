"""Figures of peers beside us as tables in Markdown, and as the files of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.reports.peers_svg import picture

Json = Mapping[str, Any]
PEERS_FILE = "peers.json"
MEASURES = ("psnr_db", "ssim", "vmaf")


def write_peers(found: Json, folder: Path) -> None:
    """Writes figures, table and picture: `peers.json`, `peers.md` and `peers.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PEERS_FILE).write_text(json.dumps(found, indent=1), encoding="utf-8")
    (folder / "peers.md").write_text(table(found), encoding="utf-8")
    (folder / "peers.svg").write_text(picture(found["models"]), encoding="utf-8")


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
            f"{clip['width']}, {clip['num_steps']} steps, {model['precision']}; {device}"
            f"{f', seconds of a clip in a batch of {batch}' if batch else ''}. Median (worst) of the clips."
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
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> str:
    head = f"| {row['side']} | {row['method']} | {row['setting']} | "
    if row["why"] is not None:
        return f"{head}{row['why']} | | | | | |"
    told = [_spread(row, name, form) for name, form in zip(MEASURES, (".1f", ".4f", ".0f"), strict=True)]
    share = f"{row['operations']:.1%}"
    if "batch_operations" in row:
        share += f" (batch {row['batch_operations']:.1%})"
    seconds, whole = row["clip_s"], row["whole_clip_s"]
    times = "- | -" if seconds is None else f"{seconds:.4f} | {whole / seconds:.2f}x"
    return f"{head}{share} | {times} | {' | '.join(told)} |"


def _spread(row: Json, name: str, form: str) -> str:
    worst = row[name]["worst"]
    if worst is None:
        # A clip that is the same has none of them but SSIM, one that is too small has no VMAF.
        return "same" if row["psnr_db"]["worst"] is None else "-"
    return f"{_told(row[name]['median'], form)} ({_told(worst, form)})"


def _told(value: float | None, form: str) -> str:
    return "same" if value is None else format(value, form)
