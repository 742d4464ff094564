"""`bench.html`: the table on one page. What stands on it: `templates/bench.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.reports.page import page
from jobs.reports.peers_svg import picture
from jobs.reports.step_patterns import LEGEND, look_of

Json = Mapping[str, Any]


def bench_page(document: Json) -> str:
    """Returns the page of a document as `bench` writes it."""
    peers = document.get("peers")
    groups = [_group(document, name, title) for name, title in document["groups"].items()]
    return page(
        "bench.html",
        runs=document["runs"],
        groups=[group for group in groups if group["lines"]],
        not_here=document["not_here"],
        legend=LEGEND,
        peers=peers,
        peers_picture=picture(peers["models"]) if peers else None,
    )


def _group(document: Json, name: str, title: str) -> Json:
    lines = [line for line in document["rows"] if line["group"] == name]
    return {
        "title": title,
        "lines": lines,
        "clips": _clips(lines),
        "longest_s": max((line["seconds"] for line in lines if "seconds" in line), default=1.0),
        "factors": [factor for factor in document["factors"] if factor["group"] == name],
        "stepped": [_stepped(line) for line in lines if len(line.get("step_ms", ())) > 1],
    }


def _stepped(line: Json) -> Json:
    return {"words": line["words"], "steps": [(look_of(pattern), ms) for pattern, ms in line["step_ms"].items()]}


def _clips(lines: Sequence[Json]) -> list[str]:
    """Returns what the rows render, each clip once."""
    told = {
        "{height}x{width}, {num_frames} frames, {num_steps} steps, guidance {guidance_scale:g}".format(**line["clip"])
        + f"; {line['block_parameters'] / 1e6:,.1f} million {line['weights']} weights in blocks, {line['precision']}"
        for line in lines
        if "clip" in line
    }
    return sorted(told)
