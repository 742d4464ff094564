"""The picture of peers beside us: speed-up over quality, a panel per model, a line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from jobs.reports.page import draw

WIDTH, HEIGHT, LEFT, TOP, GAP = 440, 360, 56, 34, 92
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#7A5195", "#A08000")
"""Okabe and Ito's, which people tell apart whatever colours they see, and four more; shapes differ as well."""
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SPEED_UPS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)


def picture(models: Sequence[Mapping[str, Any]]) -> Markup:
    """Returns the picture as SVG.

    A point is a setting: up is all operations over those computed, right is the median PSNR of its clips; a thin line goes
    to a mark at the worst of them. Ours are filled, peers are hollow.
    """
    drawn = [row for model in models for row in model["rows"] if _is_drawn(row)]
    methods = list(dict.fromkeys(f"{row['side']} {row['method']}" for row in drawn))
    methods.sort(key=lambda method: not method.startswith("ours"))
    looks = {
        method: {
            "colour": COLOURS[number % len(COLOURS)],
            "shape": SHAPES[(number + number // len(COLOURS)) % len(SHAPES)],
            "ours": method.startswith("ours"),
        }
        for number, method in enumerate(methods)
    }
    low = 10 * (int(min((row["psnr_db"]["worst"] for row in drawn), default=20)) // 10)
    high = 10 * (int(max((row["psnr_db"]["median"] for row in drawn), default=60)) // 10 + 1)
    most = max((1 / row["operations"] for row in drawn), default=2.0)
    top = next((value for value in SPEED_UPS if value >= most), SPEED_UPS[-1])

    def x(psnr: float) -> float:
        return round(LEFT + WIDTH * (psnr - low) / (high - low), 1)

    def y(speed_up: float) -> float:
        # By the share of operations, so that equal savings have equal heights.
        return round(TOP + HEIGHT * ((1 / speed_up) - 1 / top) / (1 - 1 / top), 1)

    panels = [
        {"title": _title(model), "shift": number * (WIDTH + GAP), "curves": _curves(model["rows"], methods, x, y)}
        for number, model in enumerate(models)
    ]
    return draw(
        "peers.svg",
        panels=panels, looks=looks, width=WIDTH, height=HEIGHT, left=LEFT, top=TOP, gap=GAP,
        columns=[(psnr, x(psnr)) for psnr in range(low, high + 1, 10)],
        lines=[(f"{value:g}x", f"{1 / value:.0%}", y(value)) for value in SPEED_UPS if value <= top],
    )  # fmt: skip


def _is_drawn(row: Mapping[str, Any]) -> bool:
    return row["why"] is None and row["psnr_db"]["worst"] is not None and row["psnr_db"]["median"] is not None


def _title(model: Mapping[str, Any]) -> str:
    return f"{model['family']}, {model['clip']['num_steps']} steps, {model['clips']} clips"


def _curves(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], x: Any, y: Any) -> list[dict[str, Any]]:
    curves: list[dict[str, Any]] = []
    for method in methods:
        own = sorted(
            (row for row in rows if _is_drawn(row) and f"{row['side']} {row['method']}" == method),
            key=lambda row: row["operations"],
        )
        points = [
            {
                "x": x(row["psnr_db"]["median"]), "y": y(1 / row["operations"]), "worst": x(row["psnr_db"]["worst"]),
                "told": f"{method}: {row['setting']}: {row['operations']:.0%}, {row['psnr_db']['median']:.1f} dB, "
                        f"worst {row['psnr_db']['worst']:.1f} dB",
            }
            for row in own
        ]  # fmt: skip
        curves.append({"method": method, "points": points, "line": " ".join(f"{p['x']},{p['y']}" for p in points)})
    return curves
