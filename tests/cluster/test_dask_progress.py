"""Jobs on the Dask dashboard: real scheduler processes, real job processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cluster.clip_board import ClipBoard
from cluster.dashboard import Dashboard
from cluster.dask_progress import DaskProgress
from cluster.job import ClusterError
from cluster.run_state import JobLine, RunState
from cluster.scheduler_file import SchedulerPlace, make_keys, read_place, security
from tests.cluster.waiting import is_alive, wait_until
from tests.sockets import listening_elsewhere


def run_job(scheduler_file: Path, name: str, *, seconds: float, num_clips: int) -> subprocess.Popen[str]:
    clips = [f"{name}-{index}" for index in range(num_clips)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.progress_job", str(scheduler_file), name, str(seconds), *clips],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(job: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Lets the job end after the clip it is at."""
    stdout, stderr = job.communicate(timeout=60)
    assert job.returncode == 0, stderr
    return json.loads(stdout), stderr


def make_keys_in(folder: Path) -> Path:
    folder.mkdir()
    make_keys(folder)
    return folder


def shake_hands(place: SchedulerPlace, keys: Path) -> bytes:
    """Returns the scheduler's first bytes to whoever holds these keys."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(keys / "dask-certificate.pem", keys / "dask-key.pem")
    with socket.create_connection(place.host_and_port, timeout=10) as plain, context.wrap_socket(plain) as tls:
        return tls.recv(8)


class View:
    """What the scheduler knows, asked of the scheduler itself."""

    def __init__(self, dashboard: Dashboard) -> None:
        place = read_place(dashboard.scheduler_file)
        assert place
        self._client = Client(place.address, security=security(dashboard.scheduler_file.parent), timeout="10s")

    def workers(self) -> set[str]:
        def look(dask_scheduler: object = None) -> set[str]:
            return {str(each.name) for each in dask_scheduler.workers.values()}

        return set(self._client.run_on_scheduler(look))

    def memory_limits(self) -> set[int]:
        def look(dask_scheduler: object = None) -> set[int]:
            return {each.memory_limit for each in dask_scheduler.workers.values()}

        return set(self._client.run_on_scheduler(look))

    def tasks(self) -> dict[str, tuple[str, str]]:
        """Clip -> (state, name of the worker that has it)."""

        def look(dask_scheduler: object = None) -> dict[str, tuple[str, str]]:
            seen = {}
            for task in dask_scheduler.tasks.values():
                at = [task.processing_on] if task.processing_on else list(task.who_has or ())
                assert task.key[0] == "render"
                seen[task.key[1]] = (task.state, str(at[0].name) if at else "")
            return seen

        return dict(self._client.run_on_scheduler(look))

    def spans(self) -> dict[str, tuple[float, float]]:
        """Clip -> (start, stop) of its bar in the task stream."""
        stream = self._client.get_task_stream(start=0)
        return {
            each["key"][1]: (span["start"], span["stop"])
            for each in stream
            for span in each["startstops"]
            if span["action"] == "compute"
        }

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with Dashboard(tmp_path_factory.mktemp("shared") / "dask") as dashboard:
        yield dashboard


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Dashboard]:
    """A dashboard for a test that kills it."""
    with Dashboard(tmp_path / "dask") as dashboard:
        yield dashboard


def test_two_jobs_show_their_clips_as_running_tasks_of_their_own_workers(dashboard: Dashboard) -> None:
    view = View(dashboard)
    view.spans()  # the task stream records from its first question on
    jobs = [run_job(dashboard.scheduler_file, f"job-0000{k}", seconds=0.6, num_clips=99) for k in range(2)]
    wait_until(lambda: view.workers() == {"job-00000", "job-00001"})
    wait_until(lambda: len(view.tasks()) >= 8)
    # Dask would pause a worker above its limit, for ever; a process that holds a model is above any.
    assert view.memory_limits() == {0}
    assert [listening_elsewhere(process) for process in (dashboard.pid, *(job.pid for job in jobs))] == [[], [], []]
    seen = view.tasks()
    assert {state for state, _ in seen.values()} <= {"processing", "memory"}
    assert {clip: worker for clip, (_, worker) in seen.items()} == {clip: clip[:9] for clip in seen}
    wait_until(
        lambda: all(
            sum(state == "processing" for clip, (state, _) in view.tasks().items() if name in clip) <= 3
            for name in ("00000", "00001")
        )
    )  # ended clips are told a moment after they end
    wait_until(lambda: len(view.spans()) >= 8)
    ended = [end(job) for job in jobs]
    assert [stderr for _, stderr in ended] == ["", ""]
    assert max(figures["longest_call_s"] for figures, _ in ended) < 0.25
    told = {clip: span for figures, _ in ended for clip, span in figures["told"].items()}
    # No bar begins or ends before its clip does; those of the first clips begin late, while Dask is imported.
    spans = view.spans()
    assert all(start - told[clip][0] > -0.1 for clip, (start, _) in spans.items())
    assert all(-0.1 < stop - told[clip][1] < 2 for clip, (_, stop) in spans.items())
    assert sum(start - told[clip][0] < 0.4 for clip, (start, _) in spans.items()) >= 4
    wait_until(lambda: view.workers() == set())
    view.close()


def test_jobs_outlive_a_killed_scheduler_and_rejoin_the_next_one(mortal: Dashboard) -> None:
    jobs = [run_job(mortal.scheduler_file, f"job-0000{k}", seconds=0.5, num_clips=99) for k in range(2)]
    view = View(mortal)
    wait_until(lambda: len(view.workers()) == 2)
    view.close()
    address = read_place(mortal.scheduler_file)
    os.kill(mortal.pid, signal.SIGKILL)
    wait_until(mortal.revive)
    assert not mortal.revive()
    assert read_place(mortal.scheduler_file) == address
    back = time.monotonic()
    view = View(mortal)
    wait_until(lambda: view.workers() == {"job-00000", "job-00001"})
    assert time.monotonic() - back < 8
    wait_until(lambda: {worker for state, worker in view.tasks().values() if state == "processing"} == view.workers())
    view.close()
    for figures, stderr in map(end, jobs):
        assert figures["exit_s"] < 5
        assert len(stderr.splitlines()) == 1
        assert "the job goes on without the dashboard" in stderr


def test_a_job_ends_in_time_when_its_scheduler_was_killed_for_good(mortal: Dashboard) -> None:
    job = run_job(mortal.scheduler_file, "job-00000", seconds=0.4, num_clips=99)
    view = View(mortal)
    wait_until(view.tasks)
    view.close()
    os.kill(mortal.pid, signal.SIGKILL)
    assert job.stderr
    assert "the job goes on without the dashboard" in job.stderr.readline()
    figures, stderr = end(job)
    assert figures["longest_call_s"] < 0.25
    assert figures["exit_s"] < 5
    assert stderr == ""


def test_a_job_without_a_scheduler_says_one_line_and_runs(tmp_path: Path) -> None:
    job = run_job(tmp_path / "dask-scheduler.json", "job-00000", seconds=0.5, num_clips=2)
    job.wait(20)
    figures, stderr = end(job)
    assert set(figures["told"]) == {"job-00000-0", "job-00000-1"}
    assert stderr.splitlines() == [
        f"job-00000: no Dask scheduler (no file {tmp_path}/dask-scheduler.json); the job goes on without the dashboard"
    ]
    assert figures["exit_s"] < 1


def test_a_scheduler_started_after_the_job_is_joined(tmp_path: Path) -> None:
    dashboard = Dashboard(tmp_path / "dask")
    job = run_job(dashboard.scheduler_file, "job-00003", seconds=0.5, num_clips=99)
    assert job.stderr
    assert "no file" in job.stderr.readline()
    with dashboard:
        view = View(dashboard)
        wait_until(lambda: view.workers() == {"job-00003"})
        view.close()
        end(job)


def test_an_address_that_answers_nothing_does_not_hold_the_job(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = tmp_path / "dask-scheduler.json"
        file.write_text(json.dumps({"address": f"tls://127.0.0.1:{silent.getsockname()[1]}", "dashboard_url": ""}))
        job = run_job(file, "job-00000", seconds=1.0, num_clips=2)
        job.wait(20)
        figures, stderr = end(job)
    assert figures["longest_call_s"] < 0.25
    assert figures["exit_s"] < 6
    assert len(stderr.splitlines()) <= 1


def test_the_dashboard_pages_answer(dashboard: Dashboard) -> None:
    for page in ("status", "tasks", "workers"):
        with urllib.request.urlopen(dashboard.url.replace("status", page), timeout=20) as answer:
            assert answer.status == 200
            assert b"Dask" in answer.read()
    port = dashboard.url.split(":")[2].split("/")[0]
    assert f"-L {port}:127.0.0.1:{port} " in dashboard.ssh_hint


def test_the_run_page_shows_what_the_driver_said_last(dashboard: Dashboard) -> None:
    document = dashboard.run_url + ".json"
    with urllib.request.urlopen(dashboard.run_url, timeout=20) as answer:
        assert b'fetch("run.json")' in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(document, timeout=20)
    line = JobLine(name="job-00003", state="running", done=3, failed=1, running=1, queued=5)
    for rendered in ("3 of 10", "4 of 10"):
        dashboard.show(RunState(title="s3://videos/run1", facts=[("rendered", rendered)], jobs=[line]))
        with urllib.request.urlopen(document, timeout=20) as answer:
            told = json.load(answer)
        assert (told["title"], told["facts"]) == ("s3://videos/run1", [["rendered", rendered]])
        assert told["jobs"] == [asdict(line)]
        assert time.time() - told["written_at"] < 60


def test_a_proxy_may_show_the_pages_under_a_path_of_its_own(tmp_path: Path) -> None:
    with Dashboard(tmp_path / "dask", prefix="/user/me/proxy") as dashboard:
        # Everybody on the machine can read arguments, and behind a proxy the prefix is the secret.
        assert b"/me/proxy" not in Path(f"/proc/{dashboard.pid}/cmdline").read_bytes()
        assert dashboard.url.endswith("/user/me/proxy/status")
        dashboard.show(RunState(title="s3://videos/run1", facts=[], jobs=[]))
        for page, word in (("status", b"Dask"), ("run", b"run.json"), ("run.json", b"s3://videos/run1")):
            with urllib.request.urlopen(dashboard.url.replace("status", page), timeout=60) as answer:
                assert word in answer.read()
        port = dashboard.url.split(":")[2].split("/")[0]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/run", timeout=20)


def test_the_key_is_private_and_in_no_pickle_and_strangers_are_refused(dashboard: Dashboard, tmp_path: Path) -> None:
    folder = dashboard.scheduler_file.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "dask-key.pem").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in pickle.dumps(DaskProgress(scheduler_file=str(dashboard.scheduler_file)))
    place = read_place(dashboard.scheduler_file)
    assert place
    assert place.address.startswith("tls://127.0.0.1:")
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca|certificate"):
        shake_hands(place, make_keys_in(tmp_path / "stranger"))
    assert shake_hands(place, folder)


def test_the_scheduler_ends_with_its_driver(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cluster.dashboard import Dashboard\n"
        "board = Dashboard(Path(sys.argv[1])); board.start(); print(board.pid, flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "dask")], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    pid = int(driver.stdout.readline())
    driver.kill()
    driver.communicate()
    wait_until(lambda: not is_alive(pid), 10)


def test_a_host_that_is_not_this_machine_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"did not start on 192\.0\.2\.1: .*[Cc]annot assign"):
        Dashboard(tmp_path / "dask", host="192.0.2.1").start()


def test_a_job_keeps_few_tasks_in_the_scheduler_however_many_clips_it_has(dashboard: Dashboard) -> None:
    listeners = [
        DaskProgress(scheduler_file=str(dashboard.scheduler_file)).open(
            f"job-{k:05d}", [f"{k}-{i}" for i in range(100)]
        )
        for k in range(8)
    ]
    view = View(dashboard)
    try:
        # A job that joins later would tell only of clips that are due then.
        for k, listener in enumerate(listeners):
            listener.started(f"{k}-0")
        wait_until(lambda: {f"{k}-0" for k in range(8)} <= set(view.tasks()))
        for k, listener in enumerate(listeners):
            for index in range(60):
                listener.started(f"{k}-{index}")
                listener.finished(f"{k}-{index}", "rendered", 0.0)
        # The next clip is told of last; what is too much goes soon after, not at once.
        wait_until(lambda: {f"{k}-60" for k in range(8)} <= set(view.tasks()))
        wait_until(lambda: len(view.tasks()) <= 8 * (20 + 3))
    finally:
        view.close()
        closers = [threading.Thread(target=listener.__exit__, args=(None, None, None)) for listener in listeners]
        start = time.monotonic()
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
    assert time.monotonic() - start < 8


def test_clips_that_overlap_or_come_out_of_order_have_their_own_bars(dashboard: Dashboard) -> None:
    view = View(dashboard)
    view.spans()
    with DaskProgress(scheduler_file=str(dashboard.scheduler_file)).open("job-00009", list("abcdef")) as listener:
        wait_until(lambda: "job-00009" in view.workers())
        listener.started("a")
        wait_until(lambda: set(view.tasks()) == set("abc"))
        listener.started("e")
        listener.finished("c", "skipped", 0.0)
        wait_until(lambda: set(view.tasks()) == set("abcde"))
        time.sleep(0.5)
        listener.finished("e", "failed", 0.5)
        wait_until(lambda: "e" in view.spans())
        time.sleep(0.5)
        listener.finished("a", "rendered", 1.0)
        wait_until(lambda: "a" in view.spans())
        spans = {clip: span for clip, span in view.spans().items() if clip in set("abcdef")}
    assert set(spans) == {"a", "c", "e"}
    assert spans["a"][0] < spans["e"][1] < spans["a"][1]
    assert spans["a"][1] - spans["a"][0] > 0.9
    assert spans["e"][1] - spans["e"][0] > 0.4
    assert spans["c"][1] - spans["c"][0] < 0.4
    view.close()


def test_due_clips_are_those_begun_and_a_few_ahead() -> None:
    board = ClipBoard(["a", "b", "c", "d"])
    assert board.due(2) == []
    board.start("b")
    assert board.due(2) == ["b", "a", "c"]
    board.finish("a", "skipped")
    assert board.due(1) == ["b", "a", "c"]
    assert (board.outcome("a"), board.outcome("b"), board.has_begun("b"), board.has_begun("c")) == (
        "skipped",
        None,
        True,
        False,
    )
