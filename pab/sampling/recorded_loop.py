"""The denoising loop of small clips as CUDA graphs: a graph per step, recorded once and replayed for every like clip.

The kernels of a small clip run faster than a host can launch them. What a step launches is known beforehand (a static plan, a
shape, a guidance scale), so it is recorded in the second clip of its kind and replayed from then on. Clips of a kind differ
in noise and text only, which are copied to where the recording reads them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pab.sampling.device_clock import DeviceClock

MAX_TOKENS = 8192
"""Latent tokens up to which an H200's host is slower than its device (docs/performance.md)."""
MAX_RECORDINGS = 4
"""Of one model; each holds the memory that its loop needs. The one that was used least recently goes first."""


class Step(Protocol):
    """The work of one clip's loop, told step by step."""

    @property
    def kind(self) -> tuple[object, ...]:
        """All that a recording fixes: clips of one kind launch the same kernels."""

    @property
    def num_steps(self) -> int:
        """Steps of the loop."""

    @property
    def texts(self) -> Mapping[str, object]:
        """What the model reads of the prompt, by guidance branch: tensors in tuples and frozen dataclasses."""

    def with_texts(self, texts: Mapping[str, object]) -> Step:
        """Returns the same work over other texts, with nothing kept yet."""

    def run(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents after a step."""

    @property
    def counts(self) -> LoopCounts:
        """What the steps that ran have computed and kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopCounts:
    """Site calls by kind, and the most memory that kept outputs held."""

    computed: Counter[str]
    reused: Counter[str]
    kept_bytes_peak: int


Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records what a function launches: returns what launches it again, and the tensor that holds its result each time."""


def run_steps(work: Step, latents: Tensor, clock: DeviceClock) -> tuple[Tensor, LoopCounts]:
    """Runs a loop step by step, with a mark after each."""
    for step in range(work.num_steps):
        latents = work.run(latents, step)
        clock.mark()
    return latents, work.counts


@dataclass(slots=True)
class LoopRecorder:
    """Records the loops of a model's small clips. `capture`: makes a recording; None for CUDA graphs.

    The first clip of a kind runs plainly, since what is compiled in it cannot be recorded.
    """

    capture: Callable[[], Capture] | None = None
    _seen: set[tuple[object, ...]] = field(default_factory=set)
    _recordings: OrderedDict[tuple[object, ...], Recording] = field(default_factory=OrderedDict)

    def run(self, work: Step, latents: Tensor, clock: DeviceClock) -> tuple[Tensor, LoopCounts]:
        """Does what `run_steps` does."""
        if work.kind not in self._seen:
            self._seen.add(work.kind)
            return run_steps(work, latents, clock)
        if work.kind not in self._recordings:
            while len(self._recordings) >= MAX_RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[work.kind] = record(work, latents, (self.capture or cuda_graphs)())
        self._recordings.move_to_end(work.kind)
        return self._recordings[work.kind].replay(work.texts, latents, clock)

    @property
    def recordings(self) -> int:
        """How many loops are held."""
        return len(self._recordings)

    def forget(self) -> None:
        """Lets all recordings go: what they launch may be gone."""
        self._seen.clear()
        self._recordings.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A loop that reads `noise` and `texts` and leaves `latents`."""

    noise: Tensor
    texts: Mapping[str, object]
    steps: tuple[Replay, ...]
    latents: Tensor
    counts: LoopCounts

    def replay(self, texts: Mapping[str, object], noise: Tensor, clock: DeviceClock) -> tuple[Tensor, LoopCounts]:
        """Runs the loop over another clip's texts and noise."""
        self.noise.copy_(noise)
        for mine, given in zip(_tensors(self.texts), _tensors(texts), strict=True):
            mine.copy_(given)
        for step in self.steps:
            step()
            clock.mark()
        return self.latents.clone(), self.counts


def record(work: Step, noise: Tensor, capture: Capture) -> Recording:
    """Records all steps of a loop. The result of none of them is to be looked at before a replay."""
    noise = noise.clone()
    texts = {branch: _mapped(text, Tensor.clone) for branch, text in work.texts.items()}
    work = work.with_texts(texts)
    latents, steps = noise, []
    for step in range(work.num_steps):
        replay, latents = capture(lambda latents=latents, step=step: work.run(latents, step))  # type: ignore[misc]
        steps.append(replay)
    return Recording(noise=noise, texts=texts, steps=tuple(steps), latents=latents, counts=work.counts)


def cuda_graphs() -> Capture:
    """Returns what captures CUDA graphs that share one pool of memory and are replayed in the order of their capture."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Other threads fetch frames and read events meanwhile, which the stricter modes forbid.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            result = run()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay, result

    return capture


def run_again(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Is what a CUDA graph is, on a CPU: replaying calls the function again and puts its result in the same place."""
    result = run().clone()

    def replay() -> None:
        result.copy_(run())

    return replay, result


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(each, change) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _mapped(getattr(value, each.name), change) for each in fields(value)})
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, note)
    return found


def shapes_of(texts: Mapping[str, object]) -> tuple[object, ...]:
    """Returns the shapes of all tensors of texts, part of a clip's kind."""
    return tuple(tuple(tensor.shape) for tensor in _tensors(texts))
