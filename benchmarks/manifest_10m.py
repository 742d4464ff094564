"""Times validating, digesting and planning of a large manifest: `python -m benchmarks.manifest_10m [--rows N] [--check]`.

Prints one JSON document: seconds per phase, rows per second and peak memory. The phases: `generate` writes the manifest
and is not counted; `validate` checks every row, gives each its clip_id and digest and writes the accepted manifest;
`plan` leaves out recorded clips and makes the shards. `--write-shards` times writing the shards, too (not counted).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.accept import accept
from manifests.read import open_manifest
from manifests.rules import FamilyRules
from manifests.shard_files import write_shards
from manifests.shards import PLAN_COLUMNS, ClipGroup, ShardPlan, plan_shards

MOST_SECONDS = 60.0
MOST_RSS_GB = 2.0
MODEL = "wan"
LOAD_S = 90.0
GENERATED_ROWS = 200_000

_SUBJECTS = (
    "a lighthouse keeper",
    "two otters",
    "an old tram",
    "a glass greenhouse",
    "a street musician",
    "a red kite",
)
_ACTIONS = ("crossing a wooden bridge", "waiting in heavy rain", "turning slowly", "under drifting snow", "at low tide")
_PLACES = ("in a harbour town", "on a mountain pass", "in a crowded market", "by a frozen lake", "above the clouds")
_STYLES = ("handheld camera, dusk", "wide shot, soft light", "slow dolly, film grain", "aerial view, golden hour")


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark. Returns 1 if `--check` is given and a limit is exceeded, else 0."""
    parser = argparse.ArgumentParser(prog="manifest_10m", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--done", type=float, default=0.1, help="share of the rows that is recorded already")
    parser.add_argument("--check", action="store_true", help=f"fail over {MOST_SECONDS:g} s or {MOST_RSS_GB:g} GB")
    parser.add_argument("--write-shards", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="manifest-benchmark-") as folder:
        result = measure(Path(folder), options.rows, options.done, shards=options.write_shards)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    over = result["seconds_counted"] > MOST_SECONDS or result["peak_rss_gb"] > MOST_RSS_GB
    return 1 if options.check and over else 0


def measure(folder: Path, num_rows: int, done_share: float, *, shards: bool) -> dict[str, float]:
    """Runs all phases in `folder` and returns what was measured."""
    source, accepted = folder / "manifest.parquet", folder / "accepted.parquet"
    clock = Clock()
    generate(source, num_rows)
    clock.lap("generate")
    accept(str(source), {MODEL: rules()}, default_model=MODEL, sink=accepted, errors_path=folder / "errors.jsonl")
    clock.lap("validate")
    with open_manifest(str(accepted)) as manifest:
        done = recorded(accepted, int(num_rows * done_share))
        batches = manifest.iter_batches(PLAN_COLUMNS)
        plan = plan_shards(batches, done, cost=seconds_of, job_minutes=240, load_s={MODEL: LOAD_S})
        clock.lap("plan")
        peak_rss_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if shards:
            written_bytes = write(plan, folder, str(accepted))
            clock.lap("write_shards")
    counted = clock.seconds["validate"] + clock.seconds["plan"]
    result = {
        "rows": num_rows,
        "rows_left_out": plan.num_done,
        "shards": len(plan.shards),
        **{f"{phase}_s": round(seconds, 2) for phase, seconds in clock.seconds.items()},
        **{f"{phase}_cpu_s": round(seconds, 2) for phase, seconds in clock.cpu_seconds.items()},
        "seconds_counted": round(counted, 2),
        "rows_per_second": round(num_rows / counted),
        "peak_rss_gb": round(peak_rss_gb, 3),
        "load_average": os.getloadavg()[0],
    }
    if shards:
        result["shard_gb"] = round(written_bytes / 1e9, 3)
        result["peak_rss_gb_with_shards"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)
    return result


class Clock:
    """Seconds of phases that follow each other, on the wall and of all processors."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def lap(self, phase: str) -> None:
        """Ends `phase` now; the next one begins."""
        now, now_cpu = time.perf_counter(), time.process_time()
        self.seconds[phase], self.cpu_seconds[phase] = now - self._last, now_cpu - self._last_cpu
        self._last, self._last_cpu = now, now_cpu


def rules() -> FamilyRules:
    """Returns limits like those of a real family."""
    return FamilyRules(
        name=MODEL,
        num_frames=range(5, 122, 4),
        height=range(256, 1025, 16),
        width=range(256, 1281, 16),
        fps=range(8, 31),
        num_steps=range(1, 101),
        guidance_scale=(0.0, 20.0),
        max_tokens=80_000,
        max_prompt_chars=2000,
        broadcasts={"none": "none", "pab": "pab"},
        identity=lambda: "weights benchmark precision bfloat16",
        num_tokens=lambda num_frames, height, width: ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16),
        defaults={
            "num_frames": 81,
            "height": 480,
            "width": 832,
            "fps": 16,
            "num_steps": 30,
            "guidance_scale": 5.0,
            "broadcast": "pab",
        },
    )


def seconds_of(group: ClipGroup) -> float:
    """Returns an estimate like that of a real family."""
    megapixels = group.num_frames * group.height * group.width / 1e6
    return group.num_steps * megapixels * (0.05 if group.guided else 0.025)


def generate(path: Path, num_rows: int) -> None:
    """Writes prompts of about 60 to 120 characters, all different, in mixed sizes, frames and steps."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, num_rows, GENERATED_ROWS):
        rows = min(GENERATED_ROWS, num_rows - start)
        parts = [pa.array(words).take(pa.array(rng.integers(0, len(words), rows))) for words in _vocabulary()]
        numbers = pa.array(np.arange(start, start + rows)).cast(pa.string())
        sizes = np.array([(480, 832), (480, 480), (720, 1280)])[rng.integers(0, 3, rows)]
        table = pa.table(
            {
                "prompt": pc.binary_join_element_wise(*parts, pa.scalar("take"), numbers, " "),
                "seed": rng.integers(0, 2**62, rows),
                "num_frames": rng.choice([33, 49, 81], rows),
                "height": sizes[:, 0],
                "width": sizes[:, 1],
                "num_steps": rng.choice([20, 30, 50], rows),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _vocabulary() -> tuple[tuple[str, ...], ...]:
    return _SUBJECTS, _ACTIONS, _PLACES, _STYLES


def recorded(accepted: Path, num_rows: int) -> Iterator[str]:
    """Yields the keys of the first rows, as a listing of the records would."""
    with open_manifest(str(accepted)) as manifest:
        for batch in manifest.iter_batches(["clip_id", "digest"]):
            keys = pc.binary_join_element_wise(batch.column("clip_id"), batch.column("digest"), ".")
            yield from keys.slice(0, max(0, num_rows)).to_pylist()
            num_rows -= len(batch)
            if num_rows <= 0:
                return


def write(plan: ShardPlan, folder: Path, accepted: str) -> int:
    """Writes every shard to `folder`. Returns the bytes written."""
    paths = [folder / f"{shard.index:05}.parquet" for shard in plan.shards]
    with open_manifest(accepted) as manifest:
        write_shards(plan, manifest, lambda index: paths[index].open("wb"))
    return sum(path.stat().st_size for path in paths)


if __name__ == "__main__":
    sys.exit(main())
