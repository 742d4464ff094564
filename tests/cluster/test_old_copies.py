"""Copies of the program that no job uses are removed, and no other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from cluster.code_copy import CodeCopy
from cluster.job import ClusterError
from cluster.old_copies import YOUNG_S, remove_old_copies
from cluster.slurm import SlurmCluster
from cluster.slurm_launch import Launch
from cluster.slurm_record import ARRAY_FOLDER, RECORD, new_record
from cluster.slurm_script import SCRIPT, Shape, array_script
from cluster.slurm_settings import SlurmSettings
from tests.cluster.daemons.slurm import Slurm
from tests.cluster.rank_calls import Say
from tests.cluster.slurm_jobs import request

SHAPE = Shape(num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=5, avoid_nodes=frozenset(), is_restart=False)
RUN = "0123456789ab"


class Jobs:
    """The folder of jobs with three copies that were taken long ago, and the names in the queues that it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queues: dict[str, Collection[str]] = {"": (), "here": ()}
        for name in ("1-a", "1-b", "1-c"):
            copy = self.copy(name)
            copy.place.mkdir(parents=True)
            (copy.place / "file.py").write_text("x = 1\n")
            self.make_old(copy.place)

    def copy(self, name: str) -> CodeCopy:
        return CodeCopy(folder=self.folder / "code", name=name, packages=("jobs/ranks",))

    def make_old(self, path: Path) -> None:
        os.utime(path, (time.time() - 2 * YOUNG_S,) * 2)

    def array(self, copy: str, *, cluster: str = "here", ids: tuple[str, ...] = ("7",)) -> str:
        """Writes what is kept of an array, and returns the name of its jobs."""
        record = new_record(self.folder / RUN, RUN, ["job-00000"], 1, cluster=cluster)
        record.folder.mkdir(parents=True)
        settings = SlurmSettings(launch=Launch(code=self.copy(copy)))
        script = array_script(settings, SHAPE, folder=record.folder, job_name=record.job_name)
        (record.folder / SCRIPT).write_text(script)
        record.answered("7").write() if ids else record.write()
        return record.job_name

    def names(self, cluster: str) -> Collection[str]:
        if cluster not in self.queues:
            raise ClusterError(f"no cluster {cluster}")
        return self.queues[cluster]

    def left(self, names: Callable[[str], Collection[str]] | None = None) -> set[str]:
        remove_old_copies(self.folder, read_names=names or self.names)
        return {path.name for path in (self.folder / "code").iterdir()}


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / ".jobs")


def test_a_copy_stays_as_long_as_a_job_of_it_is_in_the_queue(jobs: Jobs) -> None:
    of_a, _of_b = jobs.array("1-a"), jobs.array("1-b")
    jobs.queues["here"] = (of_a, "pab-somebody-elses-job")
    assert jobs.left() == {"1-a"}
    jobs.queues["here"] = ()
    assert jobs.left() == set()


def test_what_was_removed_is_told_with_its_size(jobs: Jobs) -> None:
    jobs.queues["here"] = (jobs.array("1-b"),)
    removed = remove_old_copies(jobs.folder, read_names=jobs.names)
    assert (removed.names, removed.size_bytes) == (("1-a", "1-c"), 2 * len("x = 1\n"))


def test_a_copy_that_a_submit_has_just_taken_stays_whatever_the_queue_says(jobs: Jobs) -> None:
    jobs.copy("1-b").make()
    assert jobs.left() == {"1-b"}


def test_a_copy_stays_if_nobody_knows_whether_slurm_took_its_jobs(jobs: Jobs) -> None:
    jobs.array("1-a", ids=())
    assert jobs.left() == {"1-a"}
    later = time.time() + 2 * YOUNG_S
    assert remove_old_copies(jobs.folder, read_names=jobs.names, now_s=later).names == ("1-a",)


def test_a_record_that_is_damaged_does_not_end_the_jobs_of_its_array(jobs: Jobs) -> None:
    name = jobs.array("1-c")
    (folder,) = (jobs.folder / RUN).glob(f"{ARRAY_FOLDER}*")
    (folder / RECORD).write_text("{")
    jobs.queues[""] = (name,)
    assert jobs.left() == {"1-c"}


def test_a_cluster_that_does_not_answer_keeps_the_copies_of_its_jobs(jobs: Jobs) -> None:
    jobs.array("1-a", cluster="away")
    jobs.array("1-b")
    assert jobs.left() == {"1-a"}


def test_a_copy_that_is_taken_while_it_is_removed_is_there_afterwards(jobs: Jobs) -> None:
    jobs.array("1-a")

    def names(_cluster: str) -> Collection[str]:
        jobs.copy("1-b").make()
        return ()

    assert jobs.left(names) == {"1-b"}


def test_what_a_killed_submit_has_half_made_is_removed_too(jobs: Jobs) -> None:
    half = jobs.folder / "code" / ".1-d-0123"
    half.mkdir()
    (jobs.folder / "code" / ".1-e-4567").mkdir()
    jobs.make_old(half)
    assert jobs.left() == {".1-e-4567"}
    assert remove_old_copies(jobs.folder / "nowhere", read_names=jobs.names).names == ()


@pytest.mark.cluster
def test_the_queue_of_a_real_slurm_keeps_the_copy_of_its_jobs(slurm: Slurm, jobs: Jobs) -> None:
    settings = SlurmSettings(launch=Launch(code=jobs.copy("1-b")))
    cluster = SlurmCluster(jobs.folder / RUN, settings, run_id=RUN)
    waits = request(Say(folder=jobs.folder, sleep_s=60), "job-00000", nodes=1, ranks=1)
    (job,) = cluster.submit([waits])
    jobs.make_old(jobs.copy("1-b").place)
    assert remove_old_copies(jobs.folder).names == ("1-a", "1-c")
    cluster.cancel([job])
