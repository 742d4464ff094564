"""Times `status` of a run of a million clips: `python -m benchmarks.status_1m [--clips N] [--output URL] [--check]`.

Every clip but one in a thousand has an attempt mark and a record; of the others half have failed. Making the files is not
counted. The command runs as users run it, in a process of its own. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import fsspec

from pipeline.run.run import FORMAT

MOST_SECONDS = 30.0
ROOT = Path(__file__).parent.parent
_AT_ONCE = 1000


def main() -> int:
    """Makes the run, times status, and returns 1 if --check finds it too slow or a count wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.status_1m", description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--output", metavar="URL", help="where the run is made, e.g. s3://bucket/run; it stays there, and "
                        "one that is there already is timed only (default: a temporary folder)")  # fmt: skip
    parser.add_argument("--check", action="store_true", help=f"fail above {MOST_SECONDS:.0f} s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pab-status-") as folder:
        url = arguments.output or folder
        began = time.monotonic()
        wanted = make_run(url, arguments.clips)
        made_s = time.monotonic() - began
        began = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-m", "pipeline", "status", url, "--json"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        took_s = time.monotonic() - began
        if ran.returncode not in (0, 3):  # 3: clips have failed, as some have here
            sys.stderr.write(f"status ended with {ran.returncode}: {ran.stderr[-1000:]}")
            return 1
        document = json.loads(ran.stdout)
        counts = {name: document.get(name) for name in wanted}
        result = {
            "seconds": round(took_s, 2),
            "seconds_to_make": round(made_s, 1),
            **counts,
            "as_wanted": counts == wanted,
        }
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        sys.stdout.flush()  # removing a million files takes longer than all before
    return int(arguments.check and not (counts == wanted and took_s <= MOST_SECONDS))


def make_run(url: str, num_clips: int) -> dict[str, int]:
    """Leaves what a run of this many clips leaves; returns what `status` is to tell of it."""
    fs, root = fsspec.url_to_fs(url)
    run = {"format": FORMAT, "run_id": "0123456789ab", "manifest_digest": "0", "num_clips": num_clips, "pixels": {}}
    failed = sum(1 for index in range(num_clips) if index % 2000 == 999)
    left = sum(1 for index in range(num_clips) if index % 2000 == 1999)
    if not fs.exists(f"{root}/run.json"):
        files = _files(num_clips)
        if fs.async_impl:
            while batch := dict(islice(files, _AT_ONCE)):
                fs.pipe({f"{root}/{path}": data for path, data in batch.items()}, batch_size=64)
        else:
            _write_locally(Path(root), files)
        fs.pipe_file(f"{root}/run.json", json.dumps(run).encode())
    return {"num_clips": num_clips, "rendered": num_clips - failed - left, "failed": failed, "remaining": left}


def _files(num_clips: int) -> Iterator[tuple[str, bytes]]:
    # Records are all but empty: `status` reads only the names of so many, and of a small run who they are of.
    failure = json.dumps({"stage": "denoise", "error": "NotFiniteError", "message": "made for the benchmark"}).encode()
    for index in range(num_clips):
        key = f"clip-{index:07d}.{index:016x}"
        if index % 2000 == 1999:
            continue
        yield f"attempts/{key}.1", b"{}"
        if index % 2000 == 999:
            yield f"attempts/{key}.2", b"{}"
            yield f"failures/{key}.1.json", failure
            yield f"failures/{key}.2.json", failure
        else:
            clip_id, digest = key.split(".")
            yield f"records/{key}.json", json.dumps({"clip_id": clip_id, "digest": digest}).encode()


def _write_locally(root: Path, files: Iterator[tuple[str, bytes]]) -> None:
    for kind in ("records", "attempts", "failures"):
        (root / kind).mkdir(parents=True)
    for path, data in files:
        (root / path).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
