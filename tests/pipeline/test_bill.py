"""What a run costs, and a budget that ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.store.bucket import Bucket
from pipeline.exits import BudgetError
from pipeline.run.bill import Budget, Prices, bill, bill_text, spent_s
from pipeline.run.jobs_file import new_submit, read_submits
from tests.pipeline.command import Command, assert_whole

Manifest = Callable[..., Path]


def report(job: str, gpu_s: object) -> dict[str, object]:
    return {"job": job, "throughput": {"gpu_seconds": gpu_s}}


def test_seconds_of_a_job_are_counted_once_by_drivers_or_by_its_report() -> None:
    first = new_submit("local", "").with_jobs([], {"job-00000": 10.0, "job-00001": 5.0})
    later = new_submit("local", "").with_jobs([], {"job-00001": 5.0})
    reports = [report("job-00000", 8.0), report("job-00002", 100.0), report("job-00003", None)]
    assert spent_s([first, later], reports) == 10 + 10 + 100


def test_what_a_driver_has_counted_is_kept_and_nonsense_in_the_bucket_counts_as_nothing(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    submit = new_submit("local", "", price_per_gpu_hour=2.5, budget=7.0).with_jobs([], {"job-00000": 36.04})
    submit.write(bucket)
    (found,) = read_submits(bucket)
    assert (found.gpu_s, found.price_per_gpu_hour, found.budget) == ((("job-00000", 36.0),), 2.5, 7.0)
    document = bucket.read_json(submit.path)
    bucket.write_json(submit.path, document | {"gpu_s": [["job-00000", -1e9]], "budget": "much"})
    (found,) = read_submits(bucket)
    assert (found.gpu_s, found.budget) == ((("job-00000", 0.0),), None)


def test_costs_are_told_in_gpu_hours_and_in_money() -> None:
    hours = bill(7200.0, Prices(budget=8.0), clips=4)
    assert bill_text(hours) == "2.00 GPU-hours, 0.5 GPU-hours a clip, 25% of the budget of 8 GPU-hours"
    money = bill(7200.0, Prices(per_gpu_hour=2.5, budget=10.0), clips=4)
    assert (money["cost"], money["cost_per_clip"], money["budget_share"]) == (5.0, 1.25, 0.5)
    assert bill_text(money).endswith("1.25 a clip, 50% of the budget of 10, which is 4.00 GPU-hours")
    assert bill(0.0, Prices(), clips=0)["gpu_hours_per_clip"] is None


def test_a_spent_budget_starts_nothing() -> None:
    Budget(prices=Prices(), before_s=1e9).refuse_if_spent()
    Budget(prices=Prices(budget=1.0), before_s=3599).refuse_if_spent()
    with pytest.raises(BudgetError, match="submit again with a higher --budget"):
        Budget(prices=Prices(per_gpu_hour=2.0, budget=2.0), before_s=3600).refuse_if_spent()


def test_a_budget_ends_a_run_which_a_higher_one_goes_on_with(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    # A job has clips of one size, and starting its process alone costs more than this budget.
    url, output = manifest(3, num_frames=[8, 8, 16]), tmp_path / "out"
    flags = ("--job-minutes", "1", "--max-parallel-jobs", "1", "--price-per-gpu-hour", "3600")
    ran = command.run(*command.submit_words(url, output, *flags, "--budget", "0.5", "--dry-run"))
    assert "planned cost: " in ran.stdout
    assert "0% of the budget of 0.5, which is 0.00014 GPU-hours is spent" in ran.stdout
    ran = command.run(*command.submit_words(url, output, *flags, "--budget", "0.5"))
    assert ran.returncode == 6, ran.stdout + ran.stderr
    assert "warning: " in ran.stderr
    assert "no further job starts, those at work go on to their end" in ran.stderr
    assert "submit with a higher --budget to go on" in ran.stdout
    code, document = command.json("status", output)
    assert (code, document["bill"]["price_per_gpu_hour"], document["bill"]["budget"]) == (1, 3600, 0.5)
    assert document["rendered"] >= 1
    assert document["bill"]["cost_per_clip"] > 0.5
    code, document = command.submit(url, output, *flags, "--budget", "0.5")
    assert (code, "so nothing is started" in document["error"]["message"]) == (6, True)
    code, document = command.submit(url, output, *flags, "--budget", "100000")
    assert (code, document["rendered"]) == (0, 3)
    assert document["bill"]["cost"] < 100000
    assert_whole(output, ["c0", "c1", "c2"])
    assert "cost of a clip" in (output / "reports/run.html").read_text()
