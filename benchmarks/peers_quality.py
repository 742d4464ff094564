"""Peers beside our presets and plans on the same trained weights, as `bench --rows peers` measures them, with more options.

With weights of one's own, more or fewer clips, plan files, a part of the settings; times alone again; figures of several
calls in one table and picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.bench.peers.files import joined, rows_by_setting, untimed
from jobs.bench.peers.measure import measure
from jobs.bench.peers.work import Work
from jobs.bench.run import BenchSettings, environment
from jobs.reports.peers_table import table, write_peers

Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes `peers.json`, `peers.md` and `peers.svg` into --out after every setting."""
    options = _parser().parse_args(arguments)
    if options.join:
        write_peers(joined([json.loads(path.read_text()) for path in options.join]), options.out)
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = BenchSettings(size="full", device=device, backend="none", repeat=1, seconds=0, row_seconds=0)
    found: Json = {"environment": environment(size), "models": []}
    before = [untimed(json.loads(options.again.read_text()))] if options.again else []
    for name in options.families.split(","):
        model: Json = {"rows": []}
        for part in measure(_work(name, options), device, _tell):
            # After every setting, so that a call that is cut short leaves what it has measured.
            model |= {**part, "rows": [*model["rows"], *part["rows"]]}
            write_peers(joined([*before, {**found, "models": [*found["models"], model]}]), options.out)
            _tell(json.dumps({key: value for key, value in part["rows"][0].items() if not isinstance(value, dict)}))
        found["models"].append(model)
    sys.stdout.write(table(joined([*before, found])))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_quality", description=__doc__)
    parser.add_argument("--families", default="demo_wan,demo", help="with weights of their own: FAMILY=FOLDER")
    parser.add_argument("--clips", type=int, default=16, help="prompts that training left out")
    parser.add_argument("--steps", type=int, help="the family's own unless given")
    parser.add_argument(
        "--plans", type=Path, nargs="*", default=[], help="plan files; each is for the family that it names"
    )
    parser.add_argument("--only", default="", help="a part of the settings' names")
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
    return parser


def _work(named: str, options: argparse.Namespace) -> Work:
    name, _, weights = named.partition("=")
    num_frames, height, width = map(int, options.size.split("x")) if options.size else (0, 0, 0)
    return Work(
        family=name,
        weights=weights or None,
        clips=options.clips,
        steps=options.steps,
        size=(num_frames, height, width) if options.size else None,
        precision=options.precision,
        plans=options.plans,
        only=options.only,
        max_batch=options.max_batch,
        threads=options.threads,
        known=rows_by_setting(options.again, name) if options.again else {},
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
