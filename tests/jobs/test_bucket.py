"""What the bucket promises: whole files, one winner, patience with what passes and none with what does not."""

import contextlib
import errno
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError, DamagedError
from jobs.store.retry import RetryPolicy
from tests.jobs.stores import FlakyFileSystem

QUICK = RetryPolicy(total_s=5, operation_s=0.3, first_wait_s=0.01, longest_wait_s=0.02)


@pytest.fixture(params=["file", "memory"])
def bucket(request, tmp_path):
    url = str(tmp_path / "out") if request.param == "file" else f"memory://{tmp_path.name}-{request.node.name}/out"
    return Bucket(url, retry_policy=QUICK)


@pytest.fixture
def flaky(tmp_path):
    FlakyFileSystem.troubles.clear()
    FlakyFileSystem.release = threading.Event()
    yield Bucket(f"flaky://{tmp_path.name}", retry_policy=QUICK)
    FlakyFileSystem.release.set()


def test_what_is_written_is_read_back_and_written_over(bucket):
    bucket.write("records/a.1.json", b"{}")
    bucket.write("records/a.1.json", b'{"x": 1}')
    assert bucket.read_json("records/a.1.json") == {"x": 1}
    assert bucket.exists("records/a.1.json")
    assert not bucket.exists("records/b.1.json")
    bucket.remove("records/a.1.json")
    bucket.remove("records/a.1.json")
    assert not bucket.exists("records/a.1.json")
    with pytest.raises(FileNotFoundError):
        bucket.read("records/a.1.json")


def test_text_of_others_in_a_document_moves_no_cursor_and_is_read_back(bucket):
    text = "\x1b[2J \x9b1m \u202eabc \u2028 \ufeff 猫 é"
    bucket.write_json("records/a.1.json", {"prompt": text})
    data = bucket.read("records/a.1.json").decode()
    assert all(one.isprintable() or one == "\n" for one in data)
    assert "猫 é" in data
    assert bucket.read_json("records/a.1.json") == {"prompt": text}


def test_of_many_creators_one_wins_and_its_data_stays(bucket):
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: bucket.create("run.json", b"%d" % number), range(32)))
    assert sum(won) == 1
    assert bucket.read("run.json") == b"%d" % won.index(True)


def test_what_is_too_large_for_one_request_is_not_created_exclusively(tmp_path):
    with pytest.raises(AssertionError, match="in a single request only"):
        Bucket(str(tmp_path)).create("shards/00000.parquet", bytes(65 << 20))


def test_listings_read_keys_whose_clip_ids_hold_dots(bucket):
    for key in ("a.b.c.0123", "a.0123"):
        bucket.write(layout.record(key), b"{}")
    for number in (10, 9):
        bucket.write(layout.attempt("a.b.c.4567", number), b"{}")
    bucket.write(layout.failure("a.b.c.4567", 9), b"{}")
    assert bucket.recorded_keys() == {"a.b.c.0123", "a.0123"}
    assert bucket.attempts() == {"a.b.c.4567": [9, 10]}
    assert bucket.failures() == {"a.b.c.4567": [9]}
    counts = bucket.counts()
    assert (counts["records"], counts["attempts"], counts["failures"], counts["videos"]) == (2, 2, 1, 0)


def test_a_history_counts_starts_that_left_nothing_as_killed(bucket):
    for number in (1, 2, 3):
        bucket.write(layout.attempt("a.01", number), b"{}")
    bucket.write(layout.failure("a.01", 2), b"{}")
    bucket.write(layout.record("b.01"), b"{}")
    histories = bucket.histories(["a.01", "b.01", "c.01"])
    assert histories["a.01"].attempts == (1, 2, 3)
    assert histories["a.01"].failures == (2,)
    assert [histories[key].next_attempt for key in ("a.01", "c.01")] == [4, 1]
    assert [histories[key].killed for key in ("a.01", "b.01", "c.01")] == [2, 0, 0]
    assert [histories[key].recorded for key in ("a.01", "b.01", "c.01")] == [False, True, False]


def test_a_failure_counts_though_its_mark_was_taken_back(bucket):
    bucket.write(layout.failure("a.01", 1), b"{}")
    history = bucket.histories(["a.01"])["a.01"]
    assert (history.failures, history.killed, history.next_attempt) == ((1,), 0, 2)


def test_forgetting_failures_spares_recorded_clips_and_others(bucket):
    for key in ("failed.01", "recorded.01", "killed.01"):
        bucket.write(layout.attempt(key, 1), b"{}")
    for key in ("failed.01", "recorded.01"):
        bucket.write(layout.failure(key, 1), b"{}")
    bucket.write(layout.record("recorded.01"), b"{}")
    assert bucket.forget_failures() == ["failed.01"]
    assert bucket.attempts() == {"recorded.01": [1], "killed.01": [1]}
    assert bucket.forget_failures(["killed.01", "recorded.01"]) == ["killed.01"]
    assert bucket.failures() == {"recorded.01": [1]}


def test_an_output_left_by_an_error_writes_nothing(bucket):
    with contextlib.suppress(ZeroDivisionError), bucket.open_output("shards/00001.parquet") as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert not bucket.exists("shards/00001.parquet")
    with bucket.open_output("shards/00001.parquet") as stream:
        stream.write(b"whole")
    assert bucket.read("shards/00001.parquet") == b"whole"


def test_a_local_write_that_breaks_leaves_the_old_file_and_no_other(tmp_path):
    bucket = Bucket(str(tmp_path))
    bucket.write("records/a.json", b"old")
    with pytest.raises(TypeError):
        bucket.write("records/a.json", "not bytes")
    assert bucket.read("records/a.json") == b"old"
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["a.json"]


def test_a_relative_path_means_the_same_folder_in_a_job_that_runs_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bucket = Bucket("runs/x")
    monkeypatch.chdir("/")
    bucket.write("run.json", b"{}")
    assert (tmp_path / "runs" / "x" / "run.json").read_bytes() == b"{}"


def test_a_bucket_pickles_as_url_and_patience_only(bucket):
    bucket.write("run.json", b"{}")
    state = bucket.__reduce_ex__(4)
    assert (bucket.url, bucket.retry_policy, True) in state
    copy = pickle.loads(pickle.dumps(bucket))
    assert copy.read("run.json") == b"{}"


def test_a_url_with_credentials_is_refused_without_showing_them():
    with pytest.raises(BucketError, match=r"s3://\.\.\.: a URL may not hold credentials") as caught:
        Bucket("s3://key:topsecret@bucket/out")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kept"),
    [("/", "/"), ("//", "//"), ("file:///", "file:///"), ("/out//", "/out"), ("s3://bucket/", "s3://bucket")],
)
def test_a_root_is_no_other_folder(url, kept):
    assert Bucket(url).url == kept


def test_the_root_of_the_disk_is_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").touch()
    monkeypatch.chdir(tmp_path)
    assert not Bucket("/").exists("here")
    assert Bucket("/").exists(str(tmp_path / "here").removeprefix("/"))


def test_a_document_that_is_too_deep_to_read_is_damaged(bucket):
    bucket.write("run.json", b"[" * 100_000)
    with pytest.raises(DamagedError, match="it is not a JSON document"):
        bucket.read_json("run.json")


def test_an_unknown_filesystem_is_named_at_first_use():
    with pytest.raises(BucketError, match=r"nofs://bucket: .*name another URL"):
        Bucket("nofs://bucket").exists("run.json")


def test_a_write_that_fails_twice_for_reasons_that_pass_is_tried_again(flaky, caplog):
    FlakyFileSystem.troubles += [ConnectionResetError("gone"), OSError(errno.EIO, "busy")]
    with caplog.at_level(logging.WARNING, logger="jobs"):
        flaky.write("records/a.json", b"data")
    assert flaky.read("records/a.json") == b"data"
    assert [record.getMessage() for record in caplog.records] == ["bucket_retry", "bucket_retry"]


def test_a_write_that_hangs_is_left_behind_after_its_deadline(flaky):
    FlakyFileSystem.troubles += ["hang"]
    flaky.write("records/a.json", b"data")
    assert flaky.read("records/a.json") == b"data"


def test_a_write_that_arrives_cut_is_written_again(flaky):
    FlakyFileSystem.troubles += ["half"]
    flaky.write("records/a.json", b"data")
    assert flaky.read("records/a.json") == b"data"


def test_a_creator_whose_answer_was_lost_knows_its_own_data(flaky):
    FlakyFileSystem.troubles += ["lost answer"]
    assert flaky.create("run.json", b"mine") is True
    assert flaky.create("run.json", b"theirs") is False


def test_a_refusal_is_told_at_once_with_its_cause_and_what_to_do(flaky):
    error = PermissionError("None")
    error.__cause__ = ValueError("SignatureDoesNotMatch")
    FlakyFileSystem.troubles += [error, ConnectionResetError("never reached")]
    with pytest.raises(BucketError, match=r"records/a.json .*SignatureDoesNotMatch.*check credentials"):
        flaky.write("records/a.json", b"data")
    assert len(FlakyFileSystem.troubles) == 1


def test_a_bucket_that_stays_away_is_an_error_after_the_patience_is_over(tmp_path):
    FlakyFileSystem.troubles[:] = [ConnectionResetError("gone")] * 1000
    retry_policy = RetryPolicy(total_s=0.2, operation_s=1, first_wait_s=0.01, longest_wait_s=0.02)
    with pytest.raises(BucketError, match=r"away for 0 s; submit again"):
        Bucket(f"flaky://{tmp_path.name}", retry_policy=retry_policy).write("a", b"data")
    assert 0 < len(FlakyFileSystem.troubles) < 1000
    FlakyFileSystem.troubles.clear()


def test_a_full_disk_is_not_waited_for(flaky):
    FlakyFileSystem.troubles += [OSError(errno.ENOSPC, "full"), ConnectionResetError("never reached")]
    told = r"full.*; free some space, then give the same command again \(of a job: submit again\)"
    with pytest.raises(BucketError, match=told):
        flaky.write("records/a.json", b"data")
    assert len(FlakyFileSystem.troubles) == 1
