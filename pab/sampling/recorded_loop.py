"""Denoising loops as CUDA graphs: one graph per step, recorded once, replayed for all clips of its kind.

The kernels of a small clip run faster than a host can launch them; so do those of a clip that ranks share. Plan, shapes
and guidance scale fix what a step launches. So the second clip of a kind records it, and later clips replay it. Clips of one
kind differ only in noise and text, which are copied to where the recording reads them. Ranks that share a clip all record
it: its exchanges are in their graphs, and what was counted of them is counted again by every replay.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pab.broadcast.state import ClipState
from pab.parallel.exchange import Exchanges, Recorded
from pab.sampling.recorded_sizes import MAX_ROW_TOKENS

MAX_RECORDINGS = 4
"""Per model. The least recently used one is dropped first. Clips of one kind follow each other, so few are in use."""
MAX_HELD_ROW_TOKENS = 2 * MAX_ROW_TOKENS
"""Of all recordings and the loop that runs: each recording holds the memory that its loop needs. Room for a plan and for the
loops without reuse beside it, by which samples are judged."""

Texts = Mapping[str, object]
"""By guidance branch, what the model gets of the prompt: tensors in tuples and frozen dataclasses."""
RunStep = Callable[[Tensor, int, Texts], Tensor]
"""One step of a loop: takes the latents, the step's index and the texts, returns the latents after the step."""
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records what a function launches. Returns a function that launches it again, and the tensor that then has the result."""


@dataclass(slots=True)
class LoopRecorder:
    """Records the loops of a model's clips. `capture`: makes a recording; None for CUDA graphs.

    The first clip of a kind is not recorded, because its blocks may still be compiled, and compiling cannot be captured.
    """

    capture: Callable[[], Capture] | None = None
    _seen: set[tuple[object, ...]] = field(default_factory=set)
    _recordings: OrderedDict[tuple[object, ...], Recording] = field(default_factory=OrderedDict)
    is_recording: bool = False
    """Also after an error ended a recording, until `forget`."""
    stopped: bool = False
    """Whether no further loop is recorded."""

    def wrap(
        self, run_step: RunStep, *, kind: tuple[object, ...], num_steps: int, state: ClipState,
        axes: Sequence[Exchanges] = (), row_tokens: int = 0,
    ) -> RunStep:  # fmt: skip
        """Returns a function that takes the place of `run_step` in one clip's loop, for step 0 to the last.

        `kind`: everything that a recording fixes; clips of one kind launch the same kernels. `state`: the clip's state, in
        which `run_step` counts. `axes`: those over which it exchanges, which count too. After the last step both have a
        whole loop's counts, also when the loop was replayed. `row_tokens`: what the memory of the loop grows with, alike on
        all ranks that share the clip, so that they drop the same recordings.
        """
        if self.stopped:
            return run_step
        if kind not in self._recordings:
            self._make_room(row_tokens)
        if kind not in self._seen:
            self._seen.add(kind)
            return run_step
        before = [axis.snapshot() for axis in axes]

        def replayed_step(latents: Tensor, step: int, texts: Texts) -> Tensor:
            if step == 0:
                if kind not in self._recordings:
                    self.is_recording = True
                    made = self._record(run_step, latents, texts, num_steps, state, axes)
                    self._recordings[kind] = replace(made, row_tokens=row_tokens)
                    self.is_recording = False
                self._recordings.move_to_end(kind)
            recording = self._recordings[kind]
            latents = recording.replay(latents, step, texts, state)
            if step == num_steps - 1:
                for axis, earlier, recorded in zip(axes, before, recording.exchanged, strict=True):
                    axis.replayed(earlier, recorded)
            return latents

        return replayed_step

    @property
    def recordings(self) -> int:
        """How many loops are held."""
        return len(self._recordings)

    @property
    def takes_memory(self) -> bool:
        """Whether recordings hold memory, or one was being made when an error ended it."""
        return self.is_recording or bool(self._recordings)

    def forget(self) -> None:
        """Drops all recordings: when the kernels that they launch may no longer be loaded, and before ranks part.

        NCCL closes no group whose exchanges a graph still holds.
        """
        self._seen.clear()
        self._recordings.clear()
        self.is_recording = False

    def stop(self) -> None:
        """Drops all recordings, and records no more.

        Loops that have this recorder still get texts of one length: their clips round as those that were replayed.
        """
        self.forget()
        self.stopped = True

    def _make_room(self, row_tokens: int) -> None:
        while self._recordings and (
            len(self._recordings) >= MAX_RECORDINGS
            or row_tokens + sum(each.row_tokens for each in self._recordings.values()) > MAX_HELD_ROW_TOKENS
        ):
            self._recordings.popitem(last=False)

    def _record(
        self, run_step: RunStep, noise: Tensor, texts: Texts, num_steps: int, state: ClipState, axes: Sequence[Exchanges]
    ) -> Recording:  # fmt: skip
        """Records all steps of a loop. Their results are not valid before a replay."""
        capture = (self.capture or cuda_graphs)()
        before = [axis.snapshot() for axis in axes]
        noise = noise.clone()
        texts = {branch: _mapped(text, Tensor.clone) for branch, text in texts.items()}
        latents, steps = noise, []
        for step in range(num_steps):
            replay, latents = capture(lambda latents=latents, step=step: run_step(latents, step, texts))  # type: ignore[misc]
            steps.append(replay)
        return Recording(
            noise=noise,
            texts=texts,
            steps=tuple(steps),
            latents=latents,
            computed=Counter(state.computed),
            reused=Counter(state.reused),
            kept_bytes_peak=state.kept_bytes_peak,
            exchanged=tuple(axis.take_back(earlier) for axis, earlier in zip(axes, before, strict=True)),
        )


@dataclass(slots=True, kw_only=True)
class Recording:
    """The recorded steps of a loop, which read `noise` and `texts` and write `latents`, and the loop's counts.

    Not frozen: every clip writes its noise and texts into the tensors here.
    """

    noise: Tensor
    texts: Texts
    steps: tuple[Replay, ...]
    latents: Tensor
    computed: Mapping[str, int]
    reused: Mapping[str, int]
    kept_bytes_peak: int
    exchanged: tuple[Recorded, ...] = ()
    """By axis."""
    row_tokens: int = 0

    def replay(self, latents: Tensor, step: int, texts: Texts, state: ClipState) -> Tensor:
        """Runs one step for another clip: step 0 copies its noise and texts in, the last step returns its latents.

        The steps between pass latents on inside the recording and return their argument.
        """
        if step == 0:
            self.noise.copy_(latents)
            for mine, given in zip(_tensors(self.texts), _tensors(texts), strict=True):
                mine.copy_(given)
        self.steps[step]()
        if step < len(self.steps) - 1:
            return latents
        state.computed, state.reused = Counter(self.computed), Counter(self.reused)
        state.kept_bytes_peak = self.kept_bytes_peak
        return self.latents.clone()


def cuda_graphs() -> Capture:
    """Returns what captures CUDA graphs that share one pool of memory and are replayed in the order of their capture."""
    # What plain loops have left free is not of the graphs' pool, so a large loop would need its memory twice.
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _capturing(graph, pool):
            result = run()
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay, result

    return capture


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    # Other threads fetch frames and read events meanwhile, which the stricter modes forbid.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    done = False
    try:
        yield
        done = True
    finally:
        # A stream that goes on recording takes nothing else. What went wrong is the error that counts.
        if not done:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
    graph.capture_end()


def run_again(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Replaces a CUDA graph on a CPU: a replay calls the function again and writes its result into the same tensor."""
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
    """Returns the shapes of all tensors in the texts; they are part of a clip's kind."""
    return tuple(tuple(tensor.shape) for tensor in _tensors(texts))
