"""What other submits of the run are at work on, so that a submit renders none of it a second time.

Jobs in SLURM whose driver is gone are taken over. Clips of a driver that lives are left to it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cluster.job import Cluster, Job
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from manifests.errors import ManifestError
from pipeline.run.claims import driver_claims
from pipeline.run.driven import shard_keys
from pipeline.run.jobs_file import read_submits
from pipeline.run.state import read_progress
from pipeline.screen import Screen, counted

WAIT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """Jobs and clips of other submits.

    `orphans`: jobs that nobody drives, with the keys of their clips, by shard; `left_to_others`: keys of the clips of
    drivers that live, and `drivers`: who they are. `strangers`: jobs of the run whose clips are not known
    here.
    """

    orphans: Mapping[int, tuple[Job, frozenset[str]]]
    left_to_others: frozenset[str]
    drivers: tuple[str, ...]
    strangers: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """Of all clips that are at work."""
        return self.left_to_others.union(*(keys for _, keys in self.orphans.values()))


def find_at_work(bucket: Bucket, cluster: Cluster, screen: Screen) -> AtWork:
    """Looks for living drivers of the run, by their claims, and for its jobs in the cluster. Raises BucketError.

    Jobs that were submitted from another machine are in the cluster's queue; what they render is noted in the bucket.
    """
    drivers, submits = driver_claims(bucket, screen), list(read_submits(bucket))
    theirs = [submit for submit in submits if submit.submit_id in drivers]
    driven = {layout.shard_of(name) for submit in theirs for name, _ in submit.jobs if layout.is_job_name(name)}
    drivers |= {
        submit.submit_id: f"{drivers[submit.submit_id]} since {submit.started[:40]}"
        for submit in theirs
        if submit.started
    }
    noted = {job_id: name for submit in submits if submit.cluster == "slurm" for name, job_id in submit.jobs if job_id}
    orphans, strangers = {}, []
    for job in cluster.alive(noted):
        # A job whose record was damaged, and of which the bucket says nothing either, has lost its name.
        shard = layout.shard_of(job.name) if layout.is_job_name(job.name) else None
        if shard in driven:
            continue
        if shard is None or (keys := _keys(bucket, shard)) is None:
            strangers.append(job.id)
            continue
        orphans[shard] = (job, keys)
    left = frozenset[str]().union(*(_keys(bucket, shard) or frozenset() for shard in driven))
    return AtWork(orphans=orphans, left_to_others=left, drivers=tuple(drivers.values()), strangers=tuple(strangers))


def tell_at_work(found: AtWork, left: Collection[str], screen: Screen) -> None:
    """Says what is left to others, and what is taken over. `left`: keys of the clips of others that have not ended."""
    if left:
        screen.note(f"{counted(len(left), 'clip')} left to another submit that is at work: {', '.join(found.drivers)}")
    if found.orphans:
        names = ", ".join(f"{job.name} ({job.id})" for job, _ in list(found.orphans.values())[:5])
        more = f" and {len(found.orphans) - 5:,} more" if len(found.orphans) > 5 else ""
        screen.note(f"{counted(len(found.orphans), 'job')} of an earlier submit taken over: {names}{more}")
    if found.strangers:
        shown = ", ".join(found.strangers[:5])
        screen.note(
            f"{counted(len(found.strangers), 'job')} of this run in the queue ({shown}), whose clips are not known here: "
            "they may be begun twice, and the first record of each counts"
        )


def wait_for_others(bucket: Bucket, keys: frozenset[str], found: AtWork, cluster: Cluster, screen: Screen) -> None:
    """Waits until the clips that were left to others have ended, or the others have.

    Raises BucketError; CancelledError when the run is cancelled meanwhile: this submit would bring its jobs back.
    """
    told = False
    while True:
        cluster.refuse_if_cancelled()
        progress = read_progress(bucket, keys)
        left = found.left_to_others - progress.recorded - progress.not_rendered
        if not left or not driver_claims(bucket, screen):
            return
        if not told:
            screen.note(f"this submit waits for {counted(len(left), 'clip')} of {', '.join(found.drivers)}")
            told = True
        time.sleep(WAIT_S)


def _keys(bucket: Bucket, shard: int) -> frozenset[str] | None:
    try:
        return shard_keys(bucket, shard)
    except (BucketError, ManifestError):
        return None
