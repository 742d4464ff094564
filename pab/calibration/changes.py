"""How much the output of every site changes from one step to any other: the paper's U-shape, measured on a clip.

Of each output a fixed random sample of its numbers stays on the device for the length of the clip, so that all pairs of steps
can be compared at the end, in little memory and with no wait for the device in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pab.broadcast.state import Reuse, ReuseStreams, RunBlock, RunStreams, Streams, Visit, handed_over
from pab.calibration.groups import SiteGroup

Matrix = npt.NDArray[np.float64]
SAMPLE = 8192
"""Numbers kept of one output."""


@dataclass(slots=True, kw_only=True)
class Sampler:
    """Draws the same places of every tensor of one size, by a seed. `places`: drawn so far, by size and device."""

    limit: int
    seed: int = 0
    places: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Returns [at most `limit`] float32: all numbers of a small tensor, a random sample of a large one."""
        size, flat = tensor.numel(), tensor.flatten()
        if size <= self.limit:
            return flat.float()
        key = size, str(tensor.device)
        if key not in self.places:
            generator = torch.Generator().manual_seed(self.seed)
            self.places[key] = torch.randint(size, (self.limit,), generator=generator).to(tensor.device)
        return flat[self.places[key]].float()


@dataclass(slots=True, kw_only=True)
class Samples:
    """Samples of one clip: (site, branch, stream) -> one [n] per step at which it computed, in order."""

    sampler: Sampler = field(default_factory=lambda: Sampler(limit=SAMPLE))
    taken: dict[tuple[str, str, int], list[Tensor]] = field(default_factory=dict)

    def take(self, site: str, branch: str, streams: Sequence[Tensor]) -> None:
        """Keeps a sample of what a site computed."""
        for i, stream in enumerate(streams):
            self.taken.setdefault((site, branch, i), []).append(self.sampler(stream))

    def changes(self, groups: Sequence[SiteGroup]) -> Changes:
        """Compares all steps of every group."""
        squares = [self._group_squares(group) for group in groups]
        return Changes(difference=np.stack([d for d, _ in squares]), size=np.stack([size for _, size in squares]))

    def _group_squares(self, group: SiteGroup) -> tuple[Matrix, Matrix]:
        names = set(group.names)
        outputs = [torch.stack(steps) for (site, _, _), steps in self.taken.items() if site in names]
        assert outputs, f"{group.label}: no site of it ran"
        differences = torch.stack([_differences(output) for output in outputs]).mean(0)
        sizes = torch.stack([output.square().mean(1) for output in outputs]).mean(0)
        return differences.double().cpu().numpy(), sizes.double().cpu().numpy()


def _differences(output_SN: Tensor) -> Tensor:
    # By subtraction: from products, small differences of large numbers would be lost.
    return torch.stack([(output_SN - row).square().mean(1) for row in output_SN])


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """`difference` [G, S, S]: mean squared difference of a group's outputs at two steps. `size` [G, S]: their mean square."""

    difference: Matrix
    size: Matrix

    @property
    def neighbours(self) -> Matrix:
        """[G, S - 1]: the change from each step to the next."""
        steps = np.arange(1, self.difference.shape[1])
        return self.difference[:, steps - 1, steps]

    @property
    def from_step_to_step(self) -> Matrix:
        """[G, S - 1]: the same, relative to the size of the later one."""
        return self.neighbours / self.size[:, 1:]

    @property
    def relative(self) -> Matrix:
        """[G, S, S]: relative to the size at the later step of the two (the column)."""
        return self.difference / self.size[:, None, :]


def mean_changes(clips: Sequence[Changes]) -> Changes:
    """Returns the mean of several clips, each step's outputs measured by their own size."""
    relative = np.mean([clip.relative for clip in clips], axis=0)
    return Changes(difference=relative, size=np.ones(relative.shape[:2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningVisit:
    """A visit that also hands what sites compute to `take`: site, guidance branch, and its streams."""

    visit: Visit
    take: Callable[[str, str, Sequence[Tensor]], None]

    @property
    def step(self) -> int:
        """The step."""
        return self.visit.step

    @property
    def branch(self) -> str:
        """The guidance branch."""
        return self.visit.branch

    def begin_blocks(self, tokens: Streams) -> bool:
        """Asks the visit."""
        return self.visit.begin_blocks(tokens)

    def end_blocks(self, tokens: Streams) -> Streams:
        """Asks the visit."""
        return self.visit.end_blocks(tokens)

    def run_block(self, sites: Sequence[str], x: Tensor, run: RunBlock, *, own: int) -> Tensor:
        """Has the block hand over the output of every site, keeps samples, and passes on what the visit wants."""

        def listened(reuse: Reuse, wanted: tuple[bool, ...]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            x, outputs = run(reuse, tuple(kept is None for kept in reuse))
            for site, output in zip(sites, outputs, strict=True):
                if output is not None:
                    self.take(site, self.branch, (output,))
            return x, tuple(output if want else None for output, want in zip(outputs, wanted, strict=True))

        return self.visit.run_block(sites, x, listened, own=own)

    def run_streams(
        self, sites: Sequence[str], run: RunStreams, *, own: Callable[[Streams], Sequence[int]]
    ) -> Streams:  # fmt: skip
        """Does the same for a block whose sites and tokens have streams."""

        def listened(reuse: ReuseStreams, wanted: tuple[bool, ...]) -> tuple[Streams, ReuseStreams]:
            tokens, outputs = run(reuse, tuple(kept is None for kept in reuse))
            for site, streams in zip(sites, outputs, strict=True):
                if streams is not None:
                    self.take(site, self.branch, streams)
            return tokens, handed_over(outputs, wanted)

        return self.visit.run_streams(sites, listened, own=own)
