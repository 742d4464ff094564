"""The gallery of a run's page: what it says of each clip, in files that define data, since a page from a disk may not fetch.

A run of 100,000 clips has 200 such files. The page reads the first one at once, and the others only when it needs them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COLUMNS = (
    "clip_id", "digest", "outcome", "prompt", "negative_prompt", "seed", "model", "num_frames", "height", "width", "fps",
    "num_steps", "guidance_scale", "broadcast", "rendered", "elapsed_s", "psnr_db", "ssim", "vmaf", "identical", "alarms",
    "video", "poster", "without_reuse", "record", "log", "job", "error", "failure",
)  # fmt: skip
"""What a row has, in this order. The page reads the names from the index, so a column may be added."""
CLIPS_PER_FILE = 500
MOST_CHOICES = 200
"""Different values that a filter of the page offers at most."""
FILTERS = ("outcome", "model", "size", "broadcast", "alarm")
Row = Mapping[str, Any]


def size_of(row: Row) -> str:
    """Returns a clip's size as the page says it: `49 x 480 x 720`."""
    return " x ".join("?" if row[name] is None else str(row[name]) for name in ("num_frames", "height", "width"))


def data_file(number: int, rows: Iterable[Row]) -> bytes:
    """Returns the file of rows that hands them to the page. It is JavaScript of ASCII alone, whatever the rows say."""
    values = [[row[name] for name in COLUMNS] for row in rows]
    return f"pabClips({number}, {_ascii(values)});\n".encode("ascii")


def _ascii(value: object) -> str:
    # `<` does not end a script that somebody puts into a page.
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@dataclass(slots=True)
class GalleryIndex:
    """What the page must know before it has read the rows: how many there are, where, and what may be chosen.

    `files`: links to the files of rows, in order.
    """

    num_clips: int = 0
    with_samples: int = 0
    files: list[str] = field(default_factory=list)
    values: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in FILTERS})

    def add(self, row: Row) -> None:
        """Takes in one clip."""
        self.num_clips += 1
        self.with_samples += row["without_reuse"] is not None
        told = {name: row[name] for name in ("outcome", "model", "broadcast")} | {"size": size_of(row)}
        for name, value in told.items():
            if value is not None:
                self.values[name][str(value)] += 1
        self.values["alarm"].update(row["alarms"] or ())

    def choices(self) -> dict[str, list[tuple[str, int]]]:
        """Returns by filter its values, each with its number of clips, the most frequent first."""
        return {name: found.most_common(MOST_CHOICES) for name, found in self.values.items()}

    def to_json(self) -> str:
        """Returns what stands in the page."""
        return _ascii(
            {
                "columns": COLUMNS,
                "clips": self.num_clips,
                "perFile": CLIPS_PER_FILE,
                "files": self.files,
            }
        )


def model_facts(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns by model and weights what rendered these clips, from their records: weights, LoRAs, and the number of clips."""
    found: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        # Records of earlier versions have no LoRAs.
        loras = ", ".join(_lora_text(lora) for lora in record.get("loras", ()))
        found[record["clip"]["model"], str(record.get("weights") or ""), loras] += 1
    names = ("model", "weights", "loras")
    return [dict(zip(names, key, strict=True)) | {"clips": clips} for key, clips in sorted(found.items())]


def _lora_text(lora: Mapping[str, Any]) -> str:
    return ":".join(str(value) for name, value in lora.items() if name in ("place", "strength") and value is not None)


def joined_versions(starts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns by program every version that starts of jobs had."""
    found: dict[str, dict[str, None]] = {}
    for start in starts:
        for name, version in start.get("versions", {}).items():
            found.setdefault(str(name), {})[str(version)] = None
    return {name: list(versions) for name, versions in found.items()}
