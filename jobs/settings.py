"""What a job of a run gets: the settings that it follows, and what `submit` looked up for it.

Plain values only. They are pickled into jobs, so they must not hold secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.render_settings import RenderSettings
from pab.weights.lora import Lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How a job's ranks are used: `dp` clips at once, guidance branches over `cfg` (1 or 2) ranks, a pass over `sp` ranks."""

    dp: int = 1
    cfg: int = 1
    sp: int = 1

    @property
    def num_ranks(self) -> int:
        """Ranks in all: dp x cfg x sp."""
        return self.dp * self.cfg * self.sp

    def __str__(self) -> str:
        return f"dp={self.dp},cfg={self.cfg},sp={self.sp}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What every job of a run gets: the settings that it follows, and what `submit` looked up.

    `output`: the run's fsspec URL. `broadcast_rules`: name -> rules (as `pab.broadcast.rules.BroadcastRules.to_dict`) of
    user-made plans that rows or the command line name. `pinned_weights`: family -> the exact weights that jobs load, for
    those on the hub a certain commit; None if nothing was looked up. `pinned_loras`: the same for LoRAs. `deadline_s`:
    seconds that the job may run, None for no limit; a clip that would not end in time is left for the next start.
    `hang_s`: seconds after which a clip, or another stage of the job, hangs and the process ends itself.
    `upload_timeout_s`: how long the job waits for a bucket that does not answer. `compile_backend`: the backend of
    torch.compile. `exclusive`: whether the bucket itself refuses to create what exists, as `submit` found out by trying.
    `driver`: the program that queued the job, as `jobs.version.program` names it; None if nobody said.
    """

    output: str
    run_id: str
    mesh: Mesh
    render: RenderSettings
    broadcast_rules: dict[str, dict[str, object]] | None = None
    pinned_weights: dict[str, str] | None = None
    deadline_s: float | None = None
    hang_s: float = 3600.0
    upload_timeout_s: float = 600.0
    compile_backend: str = "inductor"
    exclusive: bool = True
    pinned_loras: Mapping[str, tuple[Lora, ...]] | None = None
    driver: str | None = None
    weights_digests: Mapping[str, str] = field(default_factory=dict)
    """By family, what names its weights in digests of clips; manifests in videos say it."""

    @property
    def weights(self) -> str | None:
        """The weights that the user chose for `--model`; None for the family's own."""
        return self.render.weights_of(self.render.model)

    def weights_of(self, model: str) -> str | None:
        """Returns the weights that jobs load for a family; None for the family's own."""
        return self.weights if self.pinned_weights is None else self.pinned_weights.get(model)

    def loras_of(self, model: str) -> tuple[Lora, ...]:
        """Returns the LoRAs that jobs add to a family's weights."""
        return (self.render.loras if self.pinned_loras is None else self.pinned_loras).get(model, ())

    def __post_init__(self) -> None:
        if self.hang_s <= 0:
            raise ValueError(f"hang_s={self.hang_s}, needs more than 0")
