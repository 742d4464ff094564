"""The sound of a video: samples to a file that ffmpeg reads, and back, compared before it may be recorded."""

from __future__ import annotations

import re
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.media.ffmpeg import FfmpegError, reading

Samples = npt.NDArray[np.float32]
"""[channels, samples], of -1..1."""

SOUND_ARGUMENTS = ("-c:a", "aac", "-b:a", "192k", "-flags:a", "+bitexact")
_PEAK = 32767
_MOST_DIFFERENT_S = 0.1
"""AAC writes whole frames of 1024 samples and some silence in front."""
_QUIETEST = 0.5
"""The least share of a sound's loudness that may come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundTrack:
    """Sound as samples, `rate` of them in a second."""

    samples: Samples
    rate: int

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(self.samples.shape[0])

    @property
    def seconds(self) -> float:
        """How long it is."""
        return float(self.samples.shape[1] / self.rate)


def write_wav(track: SoundTrack, path: Path) -> None:
    """Writes 16-bit samples; what is beyond -1..1 is cut off."""
    whole = np.round(np.clip(track.samples, -1, 1) * _PEAK).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(track.channels)
        file.setsampwidth(2)
        file.setframerate(track.rate)
        file.writeframes(whole.T.tobytes())


def wrong_sound(track: SoundTrack, path: Path, description: str, limit_s: float) -> str | None:
    """Returns what is wrong with a video's sound; None if it is what it was made of.

    `description`: what ffmpeg says of the file. Raises FfmpegError.
    """
    stream = next((line for line in description.splitlines() if "Audio:" in line), "")
    rate = re.search(r"(\d+) Hz", stream)
    if rate is None or int(rate[1]) != track.rate:
        return f"sound is {stream.strip() or 'not there'}, needs {track.rate} Hz"
    found = _read(track, path, limit_s)
    seconds = found.shape[1] / track.rate
    if abs(seconds - track.seconds) > _MOST_DIFFERENT_S:
        return f"sound is {seconds:.2f} s long, needs {track.seconds:.2f} s"
    wanted, heard = (float(np.sqrt(np.square(each).mean())) for each in (np.clip(track.samples, -1, 1), found))
    if heard < _QUIETEST * wanted - 0.01:
        return f"sound has a loudness of {heard:.3f}, needs {wanted:.3f}"
    return None


def _read(track: SoundTrack, path: Path, limit_s: float) -> Samples:
    arguments = ["-loglevel", "error", "-i", str(path), "-vn", "-f", "f32le", "-ac", str(track.channels), "pipe:1"]
    parts: list[bytes] = []
    try:
        with reading(arguments, limit_s=limit_s) as read:
            while part := read(1 << 20):
                parts.append(part)
    except FfmpegError as error:
        raise FfmpegError(f"sound does not decode: {error}") from error
    return np.frombuffer(b"".join(parts), np.float32).reshape(-1, track.channels).T
