"""Joules of clips, as GPUs count them; where nobody counts there is no number."""

import itertools
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from jobs.rendering.clip_attempt import Attempt, Energy
from jobs.rendering.energy import EnergyMeter, NoEnergyError, NvmlCounter, gpu_counter, open_meter
from jobs.rendering.group import Place
from jobs.rendering.shard_run import run_shard
from jobs.reports.report_energy import energy_summary, joules_text
from jobs.store import layout
from pab.sampling.device_clock import DeviceClock
from pipeline.run.bill import Prices, bill, bill_text, run_bill
from pipeline.run.report_rows import record_row, told_rows
from tests.jobs.nvml import Nvml, counting
from tests.jobs.world import clip, render_job, write_shard

CPU = torch.device("cpu")


def alone(**changes):
    """A group of one rank, as far as energy asks."""
    return SimpleNamespace(
        node=SimpleNamespace(device=CPU, is_clip_root=True, clip=SimpleNamespace(size=1, rank=0)),
        place=Place(rank=0, world=1, local_rank=0, num_nodes=1, job_id="1", start=0, folder=None),
        store=None, all_gather=lambda value, _kind: [value],
    )  # fmt: skip


def of_two(rank: int, store: HashStore):
    ranks = alone()
    ranks.node = SimpleNamespace(device=CPU, is_clip_root=rank == 0, clip=SimpleNamespace(size=2, rank=rank))
    ranks.place, ranks.store = replace(ranks.place, rank=rank, world=2), store
    return ranks


def measured(meter: EnergyMeter, clips: int = 1) -> list[Attempt]:
    attempts = [Attempt(clip=clip(number), number=1) for number in range(clips)]
    clock = DeviceClock(CPU)
    clock.mark()
    meter.end(attempts, meter.begin(), clock)
    return attempts


def test_a_job_tells_joules_in_record_report_page_and_bill(tmp_path):
    item = clip(0)
    bucket = write_shard(str(tmp_path), [item])
    run_shard(
        render_job(str(tmp_path)), counter_of=counting
    )  # it is a sample, whose render without reuse does not count
    record, report = bucket.record(item.key), bucket.job_report("job-00007")
    assert record["energy"] == {"joules": 10.0, "gpus": 1}
    assert report["energy"] == {"joules": 10.0, "clips": 1, "joules_per_clip": 10.0}
    assert "energy of a clip" in bucket.read(layout.job_report(7, "html")).decode()
    assert record_row(record).joules == told_rows([report])[item.key].joules == 10.0
    found = run_bill(bucket, [report, report], rendered=1)
    assert found["energy"] == report["energy"]
    assert bill_text(found).endswith(", 10 J a clip (of 1)")


def test_on_a_cpu_there_is_no_number_and_the_log_says_why_once(tmp_path):
    items = [clip(0), clip(1)]
    bucket = write_shard(str(tmp_path), items)
    render_job(str(tmp_path))()
    assert [bucket.record(item.key)["energy"] for item in items] == [None, None]
    report = bucket.job_report("job-00007")
    assert (report["energy"], [row["joules"] for row in report["clips"]]) == (None, [None, None])
    assert "energy of a clip" not in bucket.read(layout.job_report(7, "html")).decode()
    (name,) = bucket.names("logs")
    log = bucket.read(f"logs/{name}").decode()
    assert (log.count("energy_"), 'event=energy_not_counted why="cpu is no GPU"' in log) == (1, True)


def test_clips_of_a_batch_share_and_the_end_of_the_clip_before_counts_once():
    meter = EnergyMeter(counting(CPU), alone())
    assert [attempt.energy.fetch() for attempt in measured(meter, clips=4)] == [Energy(joules=2.5, gpus=1)] * 4
    begun_early = meter.begin()
    (before,) = measured(meter)
    before.energy.fetch()
    attempt, clock = Attempt(clip=clip(9), number=1), DeviceClock(CPU)
    meter.end([attempt], begun_early, clock)
    assert attempt.energy.fetch() == Energy(joules=10.0, gpus=1)
    meter.close()


@pytest.mark.parametrize("which", ["root", "other"])
def test_one_rank_that_does_not_know_its_energy_leaves_the_clip_without_a_number(which, caplog):
    store, broken = HashStore(), {"root": 0, "other": 1}[which]
    nvmls = [Nvml("GPU-0"), Nvml("GPU-1")]
    meters = [EnergyMeter(NvmlCounter(nvml, nvml.name), of_two(rank, store)) for rank, nvml in enumerate(nvmls)]
    first, _ = [measured(meter)[0] for meter in meters]
    assert first.energy.fetch() == Energy(joules=20.0, gpus=2)
    nvmls[broken].broken = True
    for _ in range(2):
        root, _ = [measured(meter)[0] for meter in meters]
        assert root.energy.fetch() is None
    for meter in meters:
        meter.close()
    assert caplog.text.count("energy_unknown") == 1


def test_a_counter_that_has_not_moved_is_no_zero():
    nvml = Nvml()
    meter = EnergyMeter(NvmlCounter(nvml, "GPU-1"), alone())
    nvml.millijoules = itertools.repeat(5_000_000)
    (attempt,) = measured(meter)
    assert attempt.energy.fetch() is None
    meter.close()


def test_what_cannot_count_says_why(monkeypatch):
    with pytest.raises(NoEnergyError, match="NVML does not know GPU-2: not found"):
        NvmlCounter(Nvml(), "GPU-2")
    with pytest.raises(NoEnergyError, match="GPU-1 does not count its energy: not supported"):
        NvmlCounter(Nvml(broken=True), "GPU-1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoEnergyError, match=r"pip install 'pab-pipeline\[energy\]'"):
        gpu_counter(torch.device("cuda"))


def test_ranks_that_share_a_gpu_count_nothing(caplog):
    caplog.set_level("INFO")
    ranks = alone()
    ranks.all_gather = lambda value, _kind: [value, value]
    with open_meter(ranks, counting) as meter:
        assert meter is None
    (told,) = caplog.records
    assert "several ranks share a GPU" in str(vars(told))


def test_records_of_before_and_nonsense_have_no_number():
    assert energy_summary([None, {}, {"joules": -1}, {"joules": "many"}, {"joules": float("inf")}, 7]) is None
    assert energy_summary([{"joules": 30}, None, {"joules": 10.0}]) == {
        "joules": 40.0, "clips": 2, "joules_per_clip": 20.0,
    }  # fmt: skip
    assert [joules_text(each) for each in (12.34, 1250.0, 3.6e6)] == ["12.3 J", "1,250 J", "1.00 kWh"]
    assert "energy" not in bill(0.0, Prices(), clips=0)


@pytest.mark.gpu
def test_a_gpu_that_works_counts_a_plausible_power():
    device = torch.device("cuda", 0)
    counter, work = gpu_counter(device), torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    begun_j, begun = counter.joules(), time.monotonic()
    while time.monotonic() - begun < 2:
        for _ in range(20):
            work @ work
        torch.cuda.synchronize()
    watts = (counter.joules() - begun_j) / (time.monotonic() - begun)
    assert 20 < watts < 1500, f"{watts:.0f} W"


@pytest.mark.gpu
def test_a_job_on_a_gpu_tells_joules(tmp_path):
    items = [clip(number, num_steps=100) for number in range(3)]
    bucket = write_shard(str(tmp_path), items)
    render_job(str(tmp_path), device="cuda", baseline=False)()
    told = [bucket.record(item.key) for item in items]
    watts = [record["energy"]["joules"] / record["elapsed_s"] for record in told if record["energy"]]
    assert watts, "clips are long enough for the counter to move"
    assert all(0 < each < 1500 for each in watts), watts
