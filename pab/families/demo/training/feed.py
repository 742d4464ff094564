"""Feeds training: clips or latents and caption ids, planned in chunks, painted on the device, handed out in batches."""

import multiprocessing
import pickle
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pab.families.demo.autoencoder import Autoencoder
from pab.families.demo.captions import write_caption
from pab.families.demo.scene import DIRECTIONS, draw_scenes
from pab.families.demo.text import PAD, START, UNKNOWN, Tokenizer
from pab.families.demo.training.generator import ClipPlan, ClipSize, paint_clips, plan_clips
from pab.families.demo.words import build_vocabulary

UNSTATED = -100  # what cross entropy leaves out
_UNKNOWN_WORD = 0.01  # of the words, so that a prompt with a strange word still works


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Clips of one size that train together, and how often they come."""

    size: ClipSize
    batch_size: int
    weight: float

    @property
    def name(self) -> str:
        """Returns frames, height and width as one word."""
        return f"{self.size.num_frames}x{self.size.height}x{self.size.width}"


def training_buckets(*, small: bool) -> tuple[Bucket, ...]:
    """Returns the sizes that train; the first is the default clip and the most frequent."""
    if small:
        return (_bucket(8, 32, 32, 16, 0.7), _bucket(8, 32, 48, 16, 0.3))
    return (
        _bucket(16, 64, 64, 64, 0.52),
        _bucket(16, 48, 80, 64, 0.10),
        _bucket(16, 80, 48, 64, 0.10),
        _bucket(8, 64, 64, 128, 0.07),
        _bucket(24, 64, 64, 42, 0.09),
        _bucket(32, 64, 64, 32, 0.04),
        _bucket(16, 96, 96, 28, 0.06),
        _bucket(16, 32, 32, 128, 0.02),
    )


def _bucket(num_frames: int, height: int, width: int, batch_size: int, weight: float) -> Bucket:
    size = ClipSize(num_frames=num_frames, height=height, width=width)
    return Bucket(size=size, batch_size=batch_size, weight=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Planned clips of one bucket for several batches, and their caption ids."""

    bucket: Bucket
    plan: ClipPlan
    ids_BL: Tensor
    direction_B: Tensor
    """Index of each clip's direction, UNSTATED where its caption says none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Clips [B, 3, T, H, W] or their latents, on the device, with their captions' ids and directions."""

    data: Tensor
    ids_BL: Tensor
    direction_B: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """What decides the order of training data."""

    seed: int
    buckets: tuple[Bucket, ...]
    batches_per_chunk: int
    max_words: int


def plan_chunk(settings: FeedSettings, index: int) -> Chunk:
    """Plans one chunk, from nothing but the settings and its index. Only trained combinations come up."""
    rng = random.Random(f"train/{settings.seed}/{index}")
    bucket = rng.choices(settings.buckets, [bucket.weight for bucket in settings.buckets])[0]
    scenes = draw_scenes(bucket.batch_size * settings.batches_per_chunk, rng)
    tokenizer = Tokenizer(build_vocabulary(), settings.max_words)
    captions = [write_caption(scene, rng) for scene in scenes]
    ids_BL = tokenizer.batch([caption.text for caption in captions])
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    hidden = (torch.rand(ids_BL.shape, generator=generator) < _UNKNOWN_WORD) & (ids_BL != PAD) & (ids_BL != START)
    plan = plan_clips(scenes, bucket.size, seed=rng.getrandbits(40))
    said = [
        DIRECTIONS.index(scene.direction) if "direction" in caption.stated else UNSTATED
        for scene, caption in zip(scenes, captions, strict=True)
    ]
    return Chunk(bucket=bucket, plan=plan, ids_BL=ids_BL.masked_fill(hidden, UNKNOWN), direction_B=torch.tensor(said))


def _pickled_chunk(settings: FeedSettings, index: int) -> bytes:
    # As bytes, because tensors between processes would go through shared memory files.
    return pickle.dumps(plan_chunk(settings, index))


class Feed:
    """Hands out training batches on the device; with workers, chunks are planned ahead in other processes."""

    def __init__(self, settings: FeedSettings, device: torch.device, *, num_workers: int = 0) -> None:
        """Starts the workers; `close` ends them."""
        self.settings = settings
        self.device = device
        self.drawn_chunks = 0
        self._ahead = 2 * num_workers
        self._pending: deque[tuple[int, Future[bytes]]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        if num_workers:
            self._pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self) -> tuple[Bucket, Iterator[Batch]]:
        """Draws the next chunk. Returns its bucket and its batches of clips."""
        chunk = self._next_chunk()
        clips = paint_clips(chunk.plan, self.device)
        size = chunk.bucket.batch_size
        parts = (clips.split(size), *(self._moved(values).split(size) for values in (chunk.ids_BL, chunk.direction_B)))
        return chunk.bucket, (Batch(data=c, ids_BL=i, direction_B=d) for c, i, d in zip(*parts, strict=True))

    def latents(self, autoencoder: Autoencoder) -> tuple[Bucket, Iterator[Batch]]:
        """Draws the next chunk with the clips encoded: its bucket and its batches of latents."""
        bucket, batches = self.batches()
        return bucket, (replace(batch, data=self._encode(autoencoder, batch.data)) for batch in batches)

    def _moved(self, values: Tensor) -> Tensor:
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    @torch.no_grad()
    def _encode(self, autoencoder: Autoencoder, clips: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return autoencoder.encode(clips).float()

    def _next_chunk(self) -> Chunk:
        index = self.drawn_chunks
        self.drawn_chunks += 1
        if self._pool is None:
            return plan_chunk(self.settings, index)
        if self._pending and self._pending[0][0] != index:
            self._pending.clear()  # the count was set anew on resuming
        while len(self._pending) < self._ahead:
            ahead = index + len(self._pending)
            self._pending.append((ahead, self._pool.submit(_pickled_chunk, self.settings, ahead)))
        chunk: Chunk = pickle.loads(self._pending.popleft()[1].result())
        return chunk
