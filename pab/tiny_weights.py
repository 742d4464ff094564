"""Writes a small model with random weights in a family's published layout: `python -m pab.tiny_weights open_sora DIR`.

Use the folder like a published one: `python -m pipeline submit --model open_sora --weights DIR ...`. The videos are noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pab.cogvideox.tiny import write_tiny_2b, write_tiny_5b
from pab.hunyuan_video.tiny import write_tiny_hunyuan_video, write_tiny_skyreels_v1
from pab.latte.tiny import write_tiny_latte
from pab.ltx.tiny import write_tiny_ltx
from pab.open_sora.tiny import write_tiny_open_sora
from pab.open_sora_plan.tiny import write_tiny_v110, write_tiny_v120
from pab.wan.tiny import write_tiny_wan, write_tiny_wan22, write_tiny_wan22_5b

WRITERS: Mapping[str, Callable[[Path, int], None]] = {
    "open_sora": write_tiny_open_sora,
    "latte": write_tiny_latte,
    "open_sora_plan_v110": write_tiny_v110,
    "open_sora_plan_v120": write_tiny_v120,
    "wan": write_tiny_wan,
    "wan22_a14b": write_tiny_wan22,
    "wan22_5b": write_tiny_wan22_5b,
    "cogvideox_2b": write_tiny_2b,
    "cogvideox_5b": write_tiny_5b,
    "ltx": write_tiny_ltx,
    "hunyuan_video": write_tiny_hunyuan_video,
    "skyreels_v1": write_tiny_skyreels_v1,
}


def write_tiny_weights(family: str, folder: Path, seed: int = 0) -> None:
    """Writes a family's tiny weights into a new or empty folder. Raises ValueError, FileExistsError."""
    if family not in WRITERS:
        raise ValueError(f"family={family!r} has no tiny weights, allowed: {', '.join(WRITERS)}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    WRITERS[family](folder, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pab.tiny_weights", description=__doc__)
    parser.add_argument("family", choices=sorted(WRITERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        write_tiny_weights(options.family, options.folder, options.seed)
    except FileExistsError as error:
        parser.error(str(error))
    sys.stdout.write(f"wrote tiny {options.family} weights to {options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
