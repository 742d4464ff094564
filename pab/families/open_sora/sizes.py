"""Sizes and lengths that Open-Sora 1.2 was trained for, and how a clip's own size maps to them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

LATENT_STRIDE = 8
IMAGE_FPS = 120
"""The frame rate that single images were trained with."""
FRAMES_PER_2S = 51
CHUNK_FRAMES, CHUNK_LATENTS, TIME_STRIDE = 17, 5, 4

ASPECT_RATIOS = (
    "3:8", "9:21", "12:25", "1:2", "9:17", "27:50", "9:16", "5:8", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "17:9", "2:1",
    "50:27",
)  # fmt: skip
"""Height to width."""

# fmt: off
SIZES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "144p": (
        (117, 312), (125, 291), (133, 277), (135, 270), (139, 262), (141, 260), (144, 256), (151, 241), (156, 234),
        (166, 221), (192, 192), (221, 165), (235, 156), (256, 144), (263, 139), (271, 135), (277, 132),
    ),
    "240p": (
        (196, 522), (210, 490), (222, 462), (226, 452), (232, 438), (236, 436), (240, 426), (252, 404), (262, 393),
        (276, 368), (320, 320), (370, 278), (392, 262), (426, 240), (440, 232), (452, 226), (462, 222),
    ),
    "360p": (
        (294, 784), (314, 732), (332, 692), (340, 680), (350, 662), (352, 652), (360, 640), (380, 608), (392, 588),
        (416, 554), (480, 480), (554, 416), (588, 392), (640, 360), (660, 350), (678, 340), (692, 332),
    ),
    "480p": (
        (392, 1046), (420, 980), (444, 925), (452, 904), (466, 880), (470, 870), (480, 854), (506, 810), (522, 784),
        (554, 738), (640, 640), (740, 555), (784, 522), (854, 480), (880, 466), (906, 454), (924, 444),
    ),
    "720p": (
        (588, 1568), (628, 1466), (666, 1388), (678, 1356), (698, 1318), (706, 1306), (720, 1280), (758, 1212), (784, 1176),
        (832, 1110), (960, 960), (1108, 832), (1176, 784), (1280, 720), (1320, 698), (1358, 680), (1386, 666),
    ),
}
# fmt: on
"""Resolution -> (height, width) in pixels, in the order of `ASPECT_RATIOS`."""

LENGTHS: Mapping[str, int] = {f"{2 * n}s": FRAMES_PER_2S * n for n in (1, 2, 4, 8, 16)}
"""Seconds at 24 frames per second -> frames, as the published pipeline names them."""


def image_size(resolution: str, aspect_ratio: str) -> tuple[int, int]:
    """Returns (height, width) in pixels, e.g. of ("480p", "9:16"). Raises ValueError naming what there is."""
    if resolution not in SIZES:
        raise ValueError(f"resolution={resolution!r}, allowed {', '.join(SIZES)}")
    if aspect_ratio not in ASPECT_RATIOS:
        raise ValueError(f"aspect_ratio={aspect_ratio!r}, allowed {', '.join(ASPECT_RATIOS)}")
    return SIZES[resolution][ASPECT_RATIOS.index(aspect_ratio)]


def rendered_size(height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) of the pixels that come out: whole latents only, 480x848 of the nominal 480x854."""
    return height // LATENT_STRIDE * LATENT_STRIDE, width // LATENT_STRIDE * LATENT_STRIDE


@cache
def nominal_size(height: int, width: int) -> tuple[int, int]:
    """Returns the size of the published table that renders as this one, or the size itself where none does.

    The published model is given nominal sizes (480x854) although it renders 480x848: noise levels and position
    embeddings depend on them.
    """
    for sizes in SIZES.values():
        for nominal in sizes:
            if rendered_size(*nominal) == (height, width):
                return nominal
    return height, width


def latent_frames(num_frames: int) -> int:
    """Returns latent frames of a clip: 5 per chunk of 17, a quarter (rounded up) of what is left."""
    return num_frames // CHUNK_FRAMES * CHUNK_LATENTS + -(-(num_frames % CHUNK_FRAMES) // TIME_STRIDE)


def num_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching 2x2."""
    rows, columns = -(-(height // LATENT_STRIDE) // 2), -(-(width // LATENT_STRIDE) // 2)
    return latent_frames(num_frames) * rows * columns
