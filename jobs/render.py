"""What is pickled into a job: renders the clips of one shard that are not recorded yet. Light to import: no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.outcome import ShardOutcome
from jobs.progress import ClipProgress, NoProgress
from jobs.settings import JobSettings
from pab.families import find_family
from pab.family import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderShard:
    """The job of one shard, called once on every rank; the value of rank 0 counts.

    `again`: clips that failed in an earlier start and are not given up are tried again; else they are left for a start
    that is. `find_family`: a module-level function from a family's name to the family, so that it pickles by reference.
    """

    settings: JobSettings
    shard: int
    progress: ClipProgress = field(default_factory=NoProgress)
    again: bool = False
    find_family: Callable[[str], Family] = find_family

    def __call__(self) -> ShardOutcome:
        """Renders and returns what became of every clip.

        Raises BucketError when the bucket refuses or stays away, GroupError when the ranks do not come together,
        GroupLostError when one of several ranks that share a clip fails.
        """
        from jobs.rendering.shard_run import run_shard

        return run_shard(self)
