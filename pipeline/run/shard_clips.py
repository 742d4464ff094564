"""Which clips the shards of a driver hold, read from the bucket once each, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.job import JobState
from cluster.run_state import JobLine
from jobs.store.bucket import Bucket
from manifests.errors import ManifestError
from pipeline.run.driven import Driven, job_line, shard_keys
from pipeline.run.state import Progress
from pipeline.screen import Screen

KEYS_A_LOOK = 8
"""How many shards are read at a look, for the lines of their jobs."""


class ShardClips:
    """The keys of shards' clips."""

    def __init__(self, bucket: Bucket, screen: Screen) -> None:
        self._bucket = bucket
        self._screen = screen
        self._keys: dict[int, frozenset[str]] = {}

    def known(self, shard: Driven) -> frozenset[str]:
        """Returns the keys of a shard that was read before; none of another."""
        return self._keys.get(shard.asked.shard, frozenset())

    def keys(self, shard: Driven) -> frozenset[str]:
        """Returns the keys of a shard; none, with a note on the screen, if it is damaged. Raises BucketError."""
        if shard.asked.shard not in self._keys:
            try:
                self._keys[shard.asked.shard] = shard_keys(self._bucket, shard.asked.shard)
            except ManifestError as error:
                # No start of its job can read it either. The other shards need their driver.
                self._keys[shard.asked.shard] = frozenset()
                self._screen.note(
                    f"{shard.job.name}: its clips wait for the next submit, its shard is damaged: {error}"
                )
        return self._keys[shard.asked.shard]

    def lines(self, shards: Sequence[Driven], progress: Progress) -> list[JobLine]:
        """Returns a line of each shard's job for the run's page. Raises BucketError."""
        # What a shard holds is read when its job has begun, of a few at each look: there may be thousands.
        begun = [shard for shard in shards if shard.job.state is not JobState.WAITING]
        for shard in [shard for shard in begun if shard.asked.shard not in self._keys][:KEYS_A_LOOK]:
            self.keys(shard)
        return [job_line(shard, self.known(shard), progress) for shard in shards]
