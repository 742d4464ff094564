"""The bucket's promises on a real S3 server, and a job that leaves everything there."""

import hashlib
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs

from jobs.outcome import Rendered
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from jobs.store.retry import RetryPolicy
from tests.cluster.daemons.ceph import S3Server
from tests.jobs.world import clip, render_job, write_shard

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.cluster
QUICK = RetryPolicy(total_s=20, operation_s=3, first_wait_s=0.1, longest_wait_s=0.5)


@pytest.fixture
def output(s3_server: S3Server, monkeypatch) -> str:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"runs-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(skip_instance_cache=True).call_s3("create_bucket", Bucket=name)
    return f"s3://{name}/out"


def test_of_many_creators_one_wins_and_knows_it(output):
    bucket = Bucket(output, retry_policy=QUICK)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: bucket.create("run.json", b"%d" % number), range(24)))
    assert sum(won) == 1
    assert bucket.read("run.json") == b"%d" % won.index(True)


@pytest.mark.parametrize("size", [0, 10, 3 << 20, 70 << 20])
def test_files_of_any_size_arrive_whole(output, tmp_path, size):
    local = tmp_path / "data"
    local.write_bytes(b"x" * size)
    bucket = Bucket(output, retry_policy=QUICK)
    bucket.upload(local, "videos/a.mp4")
    assert bucket.read("videos/a.mp4") == b"x" * size
    bucket.remove("videos/a.mp4")
    bucket.remove("videos/a.mp4")
    assert not bucket.exists("videos/a.mp4")


def test_a_listing_reads_more_than_one_page(output):
    bucket = Bucket(output, retry_policy=QUICK)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: bucket.write(layout.record(f"a.b.{number:04}"), b"{}"), range(1100)))
    assert bucket.recorded_keys() == {f"a.b.{number:04}" for number in range(1100)}
    histories = bucket.histories(["a.b.0007", "a.b.9999"])
    assert [histories[key].recorded for key in histories] == [True, False]


@pytest.mark.parametrize("prefix", ["my run", "a+b", "100%", "a&b=c", "Mädchen 猫"])
def test_a_run_below_any_prefix_sees_its_records(output, prefix):
    bucket = Bucket(f"{output}/{prefix}", retry_policy=QUICK)
    bucket.write(layout.record("a.0a"), b"{}")
    assert bucket.recorded_keys() == {"a.0a"}
    assert bucket.exists(layout.record("a.0a"))


def test_what_another_process_writes_and_removes_is_seen_at_once(output):
    here, there = Bucket(output, retry_policy=QUICK), Bucket(output, retry_policy=QUICK)
    assert (here.exists("records/a.0a.json"), here.recorded_keys()) == (False, set())
    there.write("records/a.0a.json", b"{}")
    assert (here.exists("records/a.0a.json"), here.recorded_keys()) == (True, {"a.0a"})
    there.remove("records/a.0a.json")
    assert (here.exists("records/a.0a.json"), here.recorded_keys()) == (False, set())


FORKED = """
import os, sys
from jobs.store.bucket import Bucket

bucket = Bucket(sys.argv[1])
bucket.write("logs/parent", b"")
child = os.fork()
if child == 0:
    bucket.write("logs/child", b"")
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_reaches_the_bucket_through_a_client_of_its_own(output):
    assert subprocess.run([sys.executable, "-c", FORKED, output], cwd=ROOT, timeout=60, check=False).returncode == 0
    assert sorted(Bucket(output, retry_policy=QUICK).names("logs")) == ["child", "parent"]


def test_refusals_are_told_at_once_with_the_servers_own_word(output, monkeypatch):
    start = time.monotonic()
    with pytest.raises(BucketError, match=r"NoSuchBucket.*create the bucket"):
        Bucket("s3://there-is-none/out").write("a", b"x")
    with pytest.raises(BucketError, match=r"NoSuchBucket.*create the bucket"):
        Bucket("s3://there-is-none/out").recorded_keys()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BucketError, match=r"SignatureDoesNotMatch.*check credentials"):
        Bucket(output).write("a", b"x")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("size", [1000, 20 << 20])
def test_a_server_that_never_answers_is_left_after_the_deadline(output, monkeypatch, size):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        bucket = Bucket(output, retry_policy=RetryPolicy(total_s=1, operation_s=1, bytes_per_s=1e8, first_wait_s=0.1))
        start = time.monotonic()
        with pytest.raises(BucketError, match="the bucket was away for 1 s; submit again"):
            bucket.write("a", b"x" * size)
        assert time.monotonic() - start < 8


def test_a_server_that_is_away_for_a_while_is_waited_for(output, s3_server, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    threading.Thread(target=_forward_after, args=(1.5, port, s3_server.endpoint), daemon=True).start()
    bucket = Bucket(output, retry_policy=QUICK)
    start = time.monotonic()
    bucket.write("records/a.json", b"{}")
    assert time.monotonic() - start > 1
    assert bucket.read("records/a.json") == b"{}"


def _forward_after(delay_s: float, port: int, endpoint: str) -> None:
    time.sleep(delay_s)
    host, _, server_port = endpoint.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            here, _ = listener.accept()
            there = socket.create_connection((host, int(server_port.strip("/"))))
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    while data := source.recv(1 << 16):
        sink.sendall(data)


def test_a_job_leaves_its_clips_and_its_report_in_object_storage(output, tmp_path):
    items = [clip(0), clip(1)]
    bucket = write_shard(output, items)
    assert [type(item) for item in render_job(output)().clips] == [Rendered, Rendered]
    assert bucket.recorded_keys() == {item.key for item in items}
    for item in items:
        video = bucket.read_json(layout.record(item.key))["video"]
        assert video["sha256"] == hashlib.sha256(bucket.read(video["path"])).hexdigest()
    assert bucket.read_json(layout.job_report(7))["counts"]["rendered"] == 2
    assert bucket.counts()["logs"] == 1
    assert list(Path(tmp_path).iterdir()) == []
