"""Which clips of a family may be rendered in one batch and, by kind of clip, how large the next batch is."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from jobs.log import log_event
from jobs.rendering.batch_size import BatchSize, settled
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.loops import clip_requests
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.foresight import ForesightRules
from pab.family import ClipRequest
from pab.sampling.batch import own_choices
from pab.sampling.denoise import plan_for

_LOG = logging.getLogger(__name__)
MEMORY_SHARE = 0.9
"""The share of a GPU's memory that a batch may be expected to take."""

Kind = tuple[ClipRequest, str]
"""What the clips of a batch have in common: the broadcast, and the request without its prompts and seed."""


def kind_of(clip: Clip) -> Kind:
    """Returns the clip's kind."""
    return own_choices(clip_requests(clip)[0]), clip.broadcast


@dataclass(slots=True, kw_only=True)
class KindOfClip:
    """What is known of one kind."""

    batch: BatchSize


@dataclass(slots=True, kw_only=True)
class Batching:
    """The batches of one family, as long as it is loaded. A clip's root decides; other ranks only read."""

    loaded: LoadedFamily
    settings: JobSettings
    device: torch.device
    _kinds: dict[Kind, KindOfClip] = field(default_factory=dict)
    _loaded_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self._loaded_bytes = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def of(self, clip: Clip) -> KindOfClip:
        """Returns what is known of a clip's kind. For clips that must be rendered alone, the batch size is always 1."""
        kind = kind_of(clip)
        if kind not in self._kinds:
            self._kinds[kind] = self._look_at(clip)
        return self._kinds[kind]

    def _look_at(self, clip: Clip) -> KindOfClip:
        family, most = self.loaded.family, self.loaded.family.max_batch
        try:
            rules = self.loaded.rules_of(clip, self.settings)
            plan_for(family, clip_requests(clip)[0], rules, self.settings.render.precision_of(family))
        except ValueError:
            most = 1  # it will fail, so it is rendered alone
        else:
            if isinstance(rules, ForesightRules):
                most = 1  # Foresight decides by changes that it measures over the whole pass
        return KindOfClip(batch=BatchSize(asked=self.settings.render.batch, most=most))

    @staticmethod
    def runs(attempts: Iterable[Attempt], *, alone: bool = False) -> list[list[Attempt]]:
        """Splits the clips into runs of neighbours that may share a batch; with `alone`, every clip is a run of one.

        Clips with references or several loops are alone, and so are clips whose earlier attempt may have killed the group.
        """

        def run(attempt: Attempt) -> object:
            clip = attempt.clip
            plain = attempt.number == 1 and not clip.references and clip.loops == 1
            return kind_of(clip) if plain and not alone else clip.key

        return [list(alike) for _, alike in itertools.groupby(attempts, key=run)]

    def measured(self, attempts: Sequence[Attempt]) -> None:
        """Takes the times of a batch; failed clips have no times."""
        rendered = next((attempt for attempt in attempts if attempt.loops), None)
        if rendered is None:
            return
        batch, denoised, size = self.of(rendered.clip).batch, rendered.denoised, len(attempts)
        batch.measured(
            size,
            settled(denoised.plan.patterns, denoised.step_seconds),
            compile_s=rendered.compiled.seconds * size,
        )
        batch.most = min(batch.most, self._most_in_memory())
        if size == 1:
            return
        log_event(
            _LOG, "batch_rendered", clips=size, settled_s_per_clip=round(batch.seconds.get(size, 0.0), 4),
            pays=batch.size, most=batch.most,
        )  # fmt: skip

    def _most_in_memory(self) -> int:
        """Returns how many clips are expected to fit: each needs the peak so far, divided by the largest batch so far."""
        if self.device.type != "cuda":
            return self.loaded.family.max_batch
        peak = torch.cuda.max_memory_allocated(self.device) - self._loaded_bytes
        largest = max((kind.batch.largest_rendered for kind in self._kinds.values()), default=1)
        free, _ = torch.cuda.mem_get_info(self.device)
        room = free + torch.cuda.memory_reserved(self.device) - self._loaded_bytes
        return max(1, int(MEMORY_SHARE * room * largest / max(1, peak)))
