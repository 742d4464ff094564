"""Marks and signals: who hears of the end, in which order, and what the clip's marks say afterwards."""

import signal
import sys
import threading

import pytest

from jobs.rendering.attempts import OpenAttempts, interruptible
from jobs.store.bucket import Bucket, BucketError
from pipeline.run.quarantine import write_quarantined


@pytest.fixture
def handlers():
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


def test_marks_are_numbered_past_those_that_another_start_left(tmp_path):
    bucket = Bucket(str(tmp_path))
    first, second = OpenAttempts(bucket), OpenAttempts(bucket)
    assert first.begin("a.01", 1) == 1
    assert second.begin("a.01", 1) == 2
    first.end("a.01", 1)
    assert first.withdraw() == []
    assert second.withdraw() == ["attempts/a.01.2"]
    assert second.is_withdrawn("a.01", 2)
    assert not second.is_withdrawn("a.01", 1)
    assert bucket.attempts() == {"a.01": [1]}


class NothingIsRemoved(Bucket):
    """A bucket whose policy allows no DELETE."""

    def remove(self, path):
        raise BucketError(f"cannot remove {path} (AccessDenied)")


def test_interruptions_take_no_attempt_from_a_clip_though_the_store_removes_nothing(tmp_path):
    bucket = NothingIsRemoved(str(tmp_path))
    for _ in range(3):
        attempts = OpenAttempts(bucket)
        assert attempts.begin("a.01", bucket.histories(["a.01"])["a.01"].next_attempt) == 1
        assert attempts.begin("b.01", 1) == 1
        assert attempts.hold("encoding/job-00000.demo.0")
        assert not OpenAttempts(bucket).hold("encoding/job-00000.demo.0")
        assert bucket.histories(["a.01"])["a.01"].killed == 1
        assert attempts.withdraw() == ["attempts/a.01.1", "attempts/b.01.1", "encoding/job-00000.demo.0"]
    history = bucket.histories(["a.01"])["a.01"]
    assert (history.attempts, history.killed, history.is_given_up(2)) == ((), 0, False)
    assert write_quarantined(bucket, ["a.01", "b.01"], 2) == set()
    assert bucket.failures() == {}


def test_a_mark_that_cannot_be_taken_back_keeps_no_other_from_it(tmp_path):
    class Refusing(NothingIsRemoved):
        def write_json(self, path, value):
            if "a.01" in path:
                raise BucketError(f"cannot write {path} (AccessDenied)")
            super().write_json(path, value)

    bucket = Refusing(str(tmp_path))
    attempts = OpenAttempts(bucket)
    for key in ("a.01", "b.01"):
        attempts.begin(key, 1)
    with pytest.raises(BucketError, match=r"cannot write attempts/a\.01\.1"):
        attempts.withdraw()
    assert [bucket.histories([key])[key].killed for key in ("a.01", "b.01")] == [1, 0]


def test_a_mark_tells_who_began(tmp_path):
    bucket = Bucket(str(tmp_path))
    OpenAttempts(bucket, job_id="1234_5", start=2).begin("a.01", 1)
    mark = bucket.read_json("attempts/a.01.1")
    assert (mark["job_id"], mark["start"], mark["attempt"]) == ("1234_5", 2, 1)


def test_sigterm_ends_the_job_though_it_was_ignored_before(handlers):
    signal.signal(signal.SIGTERM, lambda *_: None)
    heard = threading.Event()
    with pytest.raises(SystemExit) as ended, interruptible(heard.set):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert heard.wait(5)


def test_a_requeue_is_not_broken_by_the_sigterm_that_it_brings(handlers):
    done = []

    def requeue(*_):
        # SLURM ends the whole step as soon as it has taken the job back into its queue.
        signal.raise_signal(signal.SIGTERM)
        done.append("requeued")
        sys.exit(1)

    signal.signal(signal.SIGUSR2, requeue)
    heard = threading.Event()
    with pytest.raises(SystemExit) as ended, interruptible(heard.set):
        signal.raise_signal(signal.SIGUSR2)
    assert done == ["requeued"]
    assert ended.value.code == 1
    assert heard.wait(5)
    assert signal.getsignal(signal.SIGUSR2) is requeue


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_break_off_what_the_first_set_off(handlers, first):
    # Ctrl-C ends one rank, and the others, which take back their marks, then see that it is gone and end by SIGTERM.
    taken_back = []

    def work():
        with interruptible(lambda: None):
            try:
                signal.raise_signal(first)
            except (KeyboardInterrupt, SystemExit):
                signal.raise_signal(signal.SIGTERM)
                taken_back.append("all marks")
                raise

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        work()
    assert taken_back == ["all marks"]


def test_a_rank_whose_handler_only_takes_note_works_on_until_sigterm(handlers):
    signal.signal(signal.SIGUSR2, lambda *_: None)
    steps = []

    def work():
        with interruptible(lambda: None):
            signal.raise_signal(signal.SIGUSR2)
            steps.append("after USR2")
            signal.raise_signal(signal.SIGTERM)
            steps.append("after TERM")

    with pytest.raises(SystemExit) as ended:
        work()
    assert steps == ["after USR2"]
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_thread_can_run_a_job_without_handlers():
    values = []

    def work():
        with interruptible(lambda: None):
            values.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert values == [1]
