"""Times `status` of a run of a million clips in a local folder: `python -m benchmarks.status_1m [--clips N] [--check]`.

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
from pathlib import Path

from pipeline.run import FORMAT

MOST_SECONDS = 30.0
ROOT = Path(__file__).parent.parent


def main() -> int:
    """Makes the run, times status, and returns 1 if --check finds it too slow or a count wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.status_1m", description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the run is made (default: the system's temporary folder)")
    parser.add_argument("--check", action="store_true", help=f"fail above {MOST_SECONDS:.0f} s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pab-status-", dir=arguments.folder) as folder:
        began = time.monotonic()
        failed, left = make_run(Path(folder), arguments.clips)
        made_s = time.monotonic() - began
        began = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-m", "pipeline", "status", folder, "--json"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        took_s = time.monotonic() - began
    document = json.loads(ran.stdout)
    counts = {name: document[name] for name in ("num_clips", "rendered", "failed", "remaining")}
    wanted = {
        "num_clips": arguments.clips,
        "rendered": arguments.clips - failed - left,
        "failed": failed,
        "remaining": left,
    }
    result = {"seconds": round(took_s, 2), "seconds_to_make": round(made_s, 1), **counts, "as_wanted": counts == wanted}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return int(arguments.check and not (counts == wanted and took_s <= MOST_SECONDS))


def make_run(folder: Path, num_clips: int) -> tuple[int, int]:
    """Leaves what a run of this many clips leaves; returns how many failed and how many have not begun.

    Records are empty files: `status` reads their names only.
    """
    for kind in ("records", "attempts", "failures"):
        (folder / kind).mkdir()
    failure = {"stage": "denoise", "error": "NotFiniteError", "message": "made for the benchmark"}
    failed = left = 0
    for index in range(num_clips):
        key = f"clip-{index:07d}.{index:016x}"
        if index % 1000 == 999 and index % 2000 != 999:
            left += 1
            continue
        (folder / f"attempts/{key}.1").touch()
        if index % 2000 == 999:
            (folder / f"failures/{key}.1.json").write_text(json.dumps(failure))
            failed += 1
        else:
            (folder / f"records/{key}.json").touch()
    run = {"format": FORMAT, "run_id": "benchmark", "manifest_digest": "0", "num_clips": num_clips, "pixels": {}}
    (folder / "run.json").write_text(json.dumps(run))
    return failed, left


if __name__ == "__main__":
    sys.exit(main())
