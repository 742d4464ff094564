"""Writes a small model with random weights in a family's published layout: `python -m pab.tiny_weights open_sora DIR`.

Use the folder like a published one: `python -m pipeline submit --model open_sora --weights DIR ...`. The videos are noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pab.families.tiny_weights import TINY_FAMILIES, write_tiny_weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pab.tiny_weights", description=__doc__)
    parser.add_argument("family", choices=sorted(TINY_FAMILIES))
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
