"""What a run's files promise on stores that do not keep theirs: conditions ignored or refused, late answers, old listings."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from jobs.store.retry import RetryPolicy
from tests.jobs.s3_with_faults import Fault, FaultyS3

QUICK = RetryPolicy(total_s=5, operation_s=3, first_wait_s=0.02, longest_wait_s=0.1)


@pytest.fixture
def bucket(faulty_s3: FaultyS3) -> Bucket:
    return Bucket("s3://runs/out", retry_policy=QUICK)


@pytest.mark.parametrize(("conditions", "exclusive"), [("kept", True), ("ignored", False), ("refused", True)])
def test_whether_a_store_creates_exclusively_is_found_out_by_trying(
    faulty_s3: FaultyS3, bucket: Bucket, conditions: str, exclusive: bool
) -> None:
    faulty_s3.conditions = conditions
    # A store that refuses the condition says so each time, which is as good as knowing it.
    assert bucket.test_exclusive() is exclusive
    assert faulty_s3.objects == {}


@pytest.mark.parametrize("conditions", ["kept", "ignored", "refused"])
def test_what_exists_is_not_created_again_on_any_store(faulty_s3: FaultyS3, bucket: Bucket, conditions: str) -> None:
    faulty_s3.conditions = conditions
    bucket.test_exclusive()
    assert bucket.create("run.json", b"first")
    assert not bucket.create("run.json", b"second")
    assert bucket.create("run.json", b"first"), "the answer to the first try may have been lost"
    assert bucket.read("run.json") == b"first"


def test_a_conflict_with_a_writer_who_never_wrote_is_tried_again(faulty_s3: FaultyS3, bucket: Bucket) -> None:
    faulty_s3.faults.append(Fault(method="PUT", key="run.json", times=2, status=409, code="ConditionalRequestConflict"))
    assert bucket.create("run.json", b"mine")
    assert bucket.read("run.json") == b"mine"


FINAL = [
    (400, "InvalidToken", "renew the credentials"),
    (400, "KMS.DisabledException", "encryption key"),
    (403, "QuotaExceeded", "raise the quota"),
    (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
    (501, "NotImplemented", "does not know this request"),
    (405, "MethodNotAllowed", "the store refused it"),
    (400, "SomethingNew", "the store refused it"),
    (403, "AccessDenied", "check credentials"),
]


@pytest.mark.parametrize(("status", "code", "advice"), FINAL, ids=[code for _, code, _ in FINAL])
def test_a_refusal_that_cannot_pass_is_told_at_once_with_the_stores_code(
    faulty_s3: FaultyS3, bucket: Bucket, status: int, code: str, advice: str
) -> None:
    fault = Fault(method="PUT", key="x", times=99, status=status, code=code)
    faulty_s3.faults.append(fault)
    with pytest.raises(BucketError, match=rf"{code}.*{advice}"):
        bucket.write("x", b"data")
    assert fault.times >= 97, "it was asked once, or twice where credentials may have been renewed"


PASSING = [
    (500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests"), (400, "RequestTimeout"), (400, "BadDigest"),
    (400, "IncompleteBody"), (409, "OperationAborted"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), PASSING, ids=[code for _, code in PASSING])
def test_what_passes_is_waited_for(faulty_s3: FaultyS3, bucket: Bucket, status: int, code: str) -> None:
    faulty_s3.faults.append(Fault(method="PUT", key="x", times=3, status=status, code=code))
    bucket.write("x", b"data")
    assert bucket.read("x") == b"data"


def test_credentials_that_are_renewed_in_their_file_are_read_again_by_a_running_process(
    faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = a\n")
    bucket = Bucket("s3://runs/out", retry_policy=QUICK)
    bucket.write("x", b"before")
    used: list[str] = []
    answer = faulty_s3._put

    def only_new(request, key, data):
        used.append(request.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
        return answer(request, key, data)

    monkeypatch.setattr(faulty_s3, "_put", only_new)
    file.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = b\n")
    faulty_s3.faults.append(Fault(method="PUT", key="x", status=400, code="ExpiredToken"))
    bucket.write("x", b"after")
    assert (bucket.read("x"), used) == (b"after", ["new"])


def test_what_a_user_configures_for_s3fs_stays(monkeypatch: pytest.MonkeyPatch, faulty_s3: FaultyS3) -> None:
    import fsspec

    own = {"config_kwargs": {"s3": {"addressing_style": "virtual"}, "read_timeout": 7}}
    monkeypatch.setitem(fsspec.config.conf, "s3", own)
    config = Bucket("s3://runs/out")._fs()[0].config_kwargs
    assert config["s3"] == {"addressing_style": "virtual"}
    assert (config["read_timeout"], config["connect_timeout"]) == (7, 5)


def test_a_url_of_azure_names_its_account_and_no_password() -> None:
    assert Bucket("abfss://container@account.dfs.core.windows.net/run").url.startswith("abfss://container@account")
    with pytest.raises(BucketError, match="may not hold credentials"):
        Bucket("abfss://user:secret@account/run")


def test_a_listing_tells_sizes_and_an_empty_record_is_none(bucket: Bucket) -> None:
    bucket.write(layout.record("a.0a"), b"{}")
    bucket.write(layout.record("b.0b"), b"")
    assert bucket.listing("records") == {"a.0a.json": 2, "b.0b.json": 0}
    assert bucket.recorded_keys() == bucket.recorded_among(["a.0a", "b.0b"]) == {"a.0a"}


def test_a_late_upload_of_a_killed_sender_changes_nothing_that_a_record_names(
    faulty_s3: FaultyS3, bucket: Bucket
) -> None:
    lost, kept = layout.render("c0.0a", "1" * 64), layout.render("c0.0a", "2" * 64)
    faulty_s3.faults.append(Fault(method="PUT", key=lost, times=99, late_s=0.5))
    sender = threading.Thread(target=lambda: _suppressed(bucket, lost), daemon=True)
    sender.start()
    bucket.write(kept, b"of the attempt that is recorded")
    time.sleep(0.7)
    assert bucket.read(kept) == b"of the attempt that is recorded"
    assert bucket.read(lost) == b"of a killed sender"


def _suppressed(bucket: Bucket, path: str) -> None:
    quick = Bucket(bucket.url, retry_policy=RetryPolicy(total_s=0.1))
    with pytest.raises(BucketError):
        quick.write(path, b"of a killed sender")
