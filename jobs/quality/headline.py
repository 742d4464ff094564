"""What is told of the clips that were rendered with and without reuse: the worst and the median of them, in one line.

The headline is the worst PSNR, of so many clips: a median hides the clips that came out wrong. It needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median_low
from typing import Any

Json = dict[str, Any]
_DIGITS = {"psnr_db": 3, "ssim": 5, "vmaf": 2}


def quality_summary(baselines: Iterable[Mapping[str, Any]]) -> Json | None:
    """Returns what clips rendered twice say together, as JSON values; None without such a clip.

    `baselines`: as reports of jobs have them; those of earlier versions have no VMAF. `identical`: how many came out the
    same with reuse; they count as infinitely alike, so a worst or a median of None with clips says "the same frames". The
    median of an even number of clips is the lower one of the two in the middle. `worst_clip_id`: the clip with the least
    PSNR. `no_vmaf`: why clips have none.
    """
    clips = list(baselines)
    if not clips:
        return None
    worst = min(clips, key=_psnr_db)
    with_vmaf = [float(clip["vmaf"]) for clip in clips if clip.get("vmaf") is not None]
    return {
        "clips": len(clips),
        "identical": sum(bool(clip["identical"]) for clip in clips),
        "worst_clip_id": worst["clip_id"],
        "worst_broadcast": worst["clip"]["broadcast"],
        "psnr_db": _spread("psnr_db", [_psnr_db(clip) for clip in clips]),
        "ssim": _spread("ssim", [float(clip["ssim"]) for clip in clips]),
        "vmaf": {**_spread("vmaf", with_vmaf), "clips": len(with_vmaf)},
        "no_vmaf": sorted({str(why) for clip in clips if (why := clip.get("no_vmaf"))}),
    }


def many(count: int, thing: str) -> str:
    """Writes a count with its noun: `1 clip`, `2 clips`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def quality_text(summary: Mapping[str, Any] | None) -> str:
    """Writes a summary in one line, the headline first."""
    if summary is None:
        return "not measured, no clip was rendered with and without reuse"
    psnr_db, ssim, vmaf = (summary[name] for name in ("psnr_db", "ssim", "vmaf"))
    clips = f"{many(summary['clips'], 'clip')} rendered with and without reuse"
    if psnr_db["worst"] is None:
        return f"the same frames in {clips}"
    parts = [
        f"worst PSNR {psnr_db['worst']:.1f} dB of {clips} (clip {summary['worst_clip_id']})",
        f"median {_decibels(psnr_db['median'])}",
        f"SSIM {ssim['worst']:.4f}, median {ssim['median']:.4f}",
    ]
    if vmaf["clips"]:
        parts.append(f"VMAF {vmaf['worst']:.1f}, median {vmaf['median']:.1f}" + _of(vmaf["clips"], summary["clips"]))
    else:
        parts.append("; ".join(summary["no_vmaf"]) or "no VMAF")
    return "; ".join(parts)


def _of(part: int, whole: int) -> str:
    return "" if part == whole else f" of {part:,} of them"


def _decibels(value: float | None) -> str:
    return "the same frames" if value is None else f"{value:.1f} dB"


def _psnr_db(clip: Mapping[str, Any]) -> float:
    return math.inf if clip["identical"] else float(clip["psnr_db"])


def _spread(name: str, values: list[float]) -> Json:
    told = {"worst": min(values), "median": median_low(values)} if values else {"worst": math.inf, "median": math.inf}
    # JSON has no infinity.
    return {what: None if math.isinf(value) else round(value, _DIGITS[name]) for what, value in told.items()}
