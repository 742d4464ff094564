"""Small files that decide: written whole or not at all, and empty or damaged ones count as absent."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest

from cluster.job import ClusterError, JobRequest
from cluster.job_files import private_folder
from cluster.run_state import STATE_FILE, RunState, write_state
from cluster.scheduler_file import SCHEDULER_FILE, SchedulerPlace, make_keys, read_place, security, write_place
from cluster.slurm_queue import QueueRow
from cluster.slurm_record import ArrayRecord, cancel_mark, leave_cancel_mark, new_record, read_records
from cluster.slurm_script import write_array
from cluster.slurm_settings import SlurmSettings
from cluster.whole_files import read_json, write_json

DAMAGES = [b"", b'{"address": "tls:', b"\xff\xfe", b"[]", b'{"address": 7}']
RUN_ID = "0123456789ab"


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"first": 1})
    with monkeypatch.context() as full:
        fill_disk(full)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"second": 2})
    assert read_json(path) == {"first": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", DAMAGES)
def test_a_damaged_scheduler_file_counts_as_absent_and_is_written_anew(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / SCHEDULER_FILE
    assert read_place(path) is None
    path.write_bytes(data)
    assert read_place(path) is None
    assert f"{path} is damaged and counts as absent" in caplog.text
    place = SchedulerPlace(folder=tmp_path, address="tls://10.0.0.1:8786", dashboard_url="http://127.0.0.1:8787/status")
    write_place(place)
    assert read_place(path) == place


@pytest.mark.parametrize("file", ["dask-key.pem", "dask-certificate.pem"])
def test_an_empty_key_is_made_anew_and_a_whole_one_is_kept(tmp_path: Path, file: str) -> None:
    make_keys(tmp_path)
    whole = (tmp_path / "dask-key.pem").read_bytes()
    make_keys(tmp_path)
    assert (tmp_path / "dask-key.pem").read_bytes() == whole
    (tmp_path / file).write_bytes(b"")
    make_keys(tmp_path)
    assert (tmp_path / "dask-key.pem").read_bytes() not in (b"", whole)
    assert security(tmp_path).get_connection_args("client")["ssl_context"]


def test_the_runs_page_is_written_whole(tmp_path: Path) -> None:
    write_state(tmp_path, RunState(title="a run", facts=[], jobs=[]))
    assert json.loads((tmp_path / STATE_FILE).read_text())["title"] == "a run"
    assert [each.name for each in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.parametrize("data", [None, b"", b"[", b"{}", b"[]", b'{"names": 5}', b'[{"id": "7"}]'])
def test_jobs_whose_record_is_lost_or_damaged_are_found_by_their_name(
    tmp_path: Path, data: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    record = new_record(tmp_path, RUN_ID, ["job-00000", "job-00001"], 1)
    record.folder.mkdir()
    record.answered("77").write()
    path = record.folder / "submitted.json"
    assert [found.ids for found in read_records(tmp_path, RUN_ID)] == [("77_0", "77_1")]
    path.unlink() if data is None else path.write_bytes(data)
    caplog.set_level(logging.WARNING)
    by_name = {found.job_name: found for found in read_records(tmp_path, RUN_ID)}
    assert ("damaged" in caplog.text) is (data is not None)
    row = QueueRow(state="RUNNING", restarts=0, reason="None", job_name=record.job_name, submitted_at=1000)
    rows = {"77_1": row, "77_0": row, "78": QueueRow(state="RUNNING", restarts=0, reason="None", job_name="training")}
    found = by_name[record.job_name].found(rows)
    assert found
    assert [(job.id, job.submitted_at) for job in found.jobs()] == [("77_0", 1000), ("77_1", 1000)]
    # Versions that did not name the run yet named their jobs by the word alone.
    assert f"pab-{record.job_name.rpartition('-')[2]}" in by_name


def test_a_record_of_a_version_that_did_not_name_the_run_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "slurm-0123456789ab"
    folder.mkdir()
    entry = {"name": "job-00000", "id": "77", "num_ranks": 2, "job_name": "pab-0123456789ab", "folder": ""}
    (folder / "submitted.json").write_text(json.dumps([entry]))
    (found,) = [job for record in read_records(tmp_path, RUN_ID) for job in record.jobs()]
    assert (found.id, found.job_name, found.num_ranks, found.folder) == ("77", "pab-0123456789ab", 2, folder)


def test_what_a_full_disk_refuses_is_an_error_of_the_cluster_that_a_driver_asks_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = JobRequest(name="job-0", call=int, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=1)
    record = new_record(tmp_path, RUN_ID, ["job-0"], 1)
    with pytest.raises(ClusterError, match=r"cannot write the jobs into .*: .*; make room there"):
        write_array(SlurmSettings(), [request], folder=record.folder, script="")
    record.folder.mkdir()
    fill_disk(monkeypatch)
    for write in (record.write, lambda: leave_cancel_mark(tmp_path)):
        with pytest.raises(ClusterError, match=r"cannot write .*No space left on device; make room there"):
            write()


def test_every_cancel_leaves_another_mark(tmp_path: Path) -> None:
    marks = [cancel_mark(tmp_path)]
    for _ in range(2):
        leave_cancel_mark(tmp_path)
        marks.append(cancel_mark(tmp_path))
    assert (marks[0], len({*marks})) == (None, 3)


def test_a_private_folder_is_neither_a_link_nor_another_users(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(ClusterError, match=r"cannot make a private folder .*/link"):
        private_folder(tmp_path / "link")
    assert mine.stat().st_mode & 0o777 == 0o755
    assert private_folder(mine).stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        os.chown(mine, 65534, 65534)
        with pytest.raises(ClusterError, match="is another user's"):
            private_folder(mine)


def test_only_names_of_arrays_are_taken_for_a_runs_jobs(tmp_path: Path) -> None:
    assert ArrayRecord.lost(tmp_path, f"pab-{RUN_ID}-../../etc") is None
    assert ArrayRecord.lost(tmp_path, f"pab-{RUN_ID}-0123456789ab")
