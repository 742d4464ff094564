"""The part of a run's settings that travels into a job. Plain values only: it is pickled, so it holds no secret."""

from __future__ import annotations

from dataclasses import dataclass

MAX_ATTEMPTS = 2
"""A clip that has failed or killed its group so often is given up, not tried once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How the ranks of a job are used: `dp` clips at once, `cfg` guidance branches apart, `sp` ranks per pass."""

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
    """What every job of a run is told.

    `output`: the run's fsspec URL. `weights`: local folder, hub id, or None for the family's own; loaded where
    `pinned_weights` is None. `precision`:
    "float32" or "bfloat16". `device`: "cpu" or "cuda". `baseline`: render one PAB clip of the job a second time without PAB,
    so that the speedup is measured. `max_attempts`: attempts at a clip, failed or ended with their group, after which
    it is given up instead of tried again. `broadcast_rules`: name -> rules (as `pab.broadcast.rules.BroadcastRules.to_dict`)
    of user-made plans that rows or the command line name. `deadline_s`: seconds that the job may run; a clip that would not
    end before it is left for the next start; None for no limit. `upload_timeout_s`: how long the job waits for a bucket
    that is away. `pinned_weights`: by family, what `submit` found its weights to mean, on the hub a certain commit; it is
    what jobs load. `crf`: quality of the H.264 video, 0 (lossless) to 51. `collective_timeout_s`: how long a rank waits for
    another inside the model before it gives the group up. `compile`: whether families that can be compiled are, with
    `compile_backend`. `attention`: "auto", "default" or "cudnn", `keep`: "full" or "int8", `linears`: "full" or "float8"
    (`pab.execution.choice`). `compile_cache`: folder for compiled kernels, None for the node's own. `hang_s`: how long one
    clip may take from its mark to its frames before it is taken to hang and the process ends itself. `batch`: how many
    clips that differ in prompt and seed alone are rendered together; 0: as many as measured times say.
    """

    output: str
    run_id: str
    weights: str | None
    precision: str
    device: str
    mesh: Mesh
    baseline: bool = True
    max_attempts: int = MAX_ATTEMPTS
    upload_timeout_s: float = 600.0
    broadcast_rules: dict[str, dict[str, object]] | None = None
    pinned_weights: dict[str, str] | None = None
    deadline_s: float | None = None
    crf: int = 18
    collective_timeout_s: float = 900.0
    hang_s: float = 3600.0
    compile: bool = False
    compile_backend: str = "inductor"
    attention: str = "auto"
    keep: str = "full"
    linears: str = "full"
    compile_cache: str | None = None
    batch: int = 1

    def weights_of(self, model: str) -> str | None:
        """Returns what is loaded as the weights of a family; None for its own."""
        return self.weights if self.pinned_weights is None else self.pinned_weights.get(model)

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts={self.max_attempts}, needs 1 or more")
        if self.batch < 0:
            raise ValueError(f"batch={self.batch}, needs 1 or more, or 0 to let measured times decide")
        if self.hang_s <= 0:
            raise ValueError(f"hang_s={self.hang_s}, needs more than 0")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf={self.crf}, allowed 0 (lossless) to 51")
