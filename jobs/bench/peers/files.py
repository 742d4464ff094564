"""Figures of several calls as those of one: quality that stands, times that were taken on one device at one size of batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_NO_TIMES: Json = {"clip_s": None, "whole_clip_s": None}


def rows_by_setting(file: Path, family: str) -> dict[tuple[str, str, str], Json]:
    """Returns the rows of a `peers.json` for a family, by whose they are, method and setting."""
    models = json.loads(file.read_text(encoding="utf-8"))["models"]
    rows = [row for model in models if model["family"] == family for row in model["rows"] if row["why"] is None]
    return {_setting(row): row for row in rows}


def untimed(found: Json) -> Json:
    """Returns figures without their times."""
    return {**found, "models": [{**model, "rows": _without_times(model["rows"])} for model in found["models"]]}


def joined(parts: Sequence[Json]) -> Json:
    """Returns the figures of several calls as those of one.

    Models are the same where family, clip and precision are. Rows of a later call replace those of an earlier one; its batch,
    clips and device are told. Rows that it lacks keep their quality and lose their times: another batch, device or version of
    the code made them.
    """
    models: dict[str, Json] = {}
    for part in parts:
        for model in part["models"]:
            same = json.dumps([model["family"], model["clip"], model["precision"]], sort_keys=True)
            rows = {_setting(row): row for row in _without_times(models.get(same, {"rows": []})["rows"])}
            rows |= {_setting(row): row for row in model["rows"]}
            device = model.get("device", part["environment"]["device"])
            here = {(row["side"], row["method"]) for row in rows.values() if row.get("status") != "not run"}
            kept = [
                row
                for row in rows.values()
                if row.get("status") != "not run" or (row["side"], row["method"]) not in here
            ]
            batch = model["batch"] or models.get(same, model)["batch"]
            models[same] = {**model, "batch": batch, "device": device, "rows": kept}
    return {**parts[-1], "models": list(models.values())}


def _setting(row: Json) -> tuple[str, str, str]:
    return row["side"], row["method"], row["setting"]


def _without_times(rows: Sequence[Json]) -> list[Json]:
    return [{**row, **_NO_TIMES} if row["why"] is None else row for row in rows]
