"""Reading a video back with nothing of ours in between."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def read_video(path: Path, width: int, height: int) -> np.ndarray:
    """Returns RGB frames [T, H, W, 3], converted as a player does that believes the file's tags."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path),
        "-vf", "scale=in_color_matrix=auto:in_range=auto:out_range=full:flags=accurate_rnd+full_chroma_inp",
        "-pix_fmt", "rgb24", "-f", "rawvideo", "-",
    ]  # fmt: skip
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)
