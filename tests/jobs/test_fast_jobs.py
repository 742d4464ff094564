"""Jobs that compile, and how busy a job's device is: what the report says of both."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from jobs.outcome import Failed, Rendered
from jobs.render_settings import RenderSettings
from jobs.rendering.frames import ClipOnDevice, ComingFrames, DeviceUse
from jobs.rendering.loaded_family import load_family
from jobs.settings import JobSettings, Mesh
from jobs.store import layout
from pab.kernels import choice
from pab.sampling.device_clock import DeviceClock
from tests.jobs.world import CONFIG, TINY, clip, render_job, write_shard


@pytest.fixture(scope="module")
def compiled_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    items = [
        clip(0, num_steps=4), clip(1, num_steps=4, prompt="one two three four five"),
        clip(2, num_steps=4, prompt="fail now"), clip(3, num_steps=4, prompt="a b c"),
    ]  # fmt: skip
    bucket = write_shard(str(folder / "compiled"), items)
    torch._dynamo.reset()
    job = render_job(
        str(folder / "compiled"), baseline=False, compile=True, compile_backend="eager", compile_cache=str(folder)
    )
    outcome = job()
    plain = write_shard(str(folder / "eager"), items)
    render_job(str(folder / "eager"), baseline=False)()
    return items, bucket, plain, outcome


def test_a_job_compiles_in_its_first_clip_only_and_clips_after_a_failed_one_compile_nothing(compiled_job):
    items, bucket, plain, outcome = compiled_job
    assert [type(each) for each in outcome.clips] == [Rendered, Rendered, Failed, Rendered]
    done = [items[0], items[1], items[3]]
    told = [bucket.read_json(layout.record(item.key))["execution"] for item in done]
    assert [each["compiled"] for each in told] == [True] * 3
    assert told[0]["graphs"] > 0
    assert told[0]["compile_s"] > 0
    assert [each["graphs"] for each in told[1:]] == [0, 0]
    for item in done:
        assert bucket.read(layout.video(item.clip_id)) == plain.read(layout.video(item.clip_id))


def test_a_job_that_keeps_int8_says_so_and_holds_less(compiled_job, tmp_path):
    items, _, plain, _ = compiled_job
    bucket = write_shard(str(tmp_path), items[:1])
    render_job(str(tmp_path), baseline=False, keep="int8")()
    small, full = (each.read_json(layout.record(items[0].key)) for each in (bucket, plain))
    assert [each["execution"]["keep"] for each in (small, full)] == ["int8", "full"]
    width = CONFIG.hidden_size
    assert small["kept_bytes_peak"] == full["kept_bytes_peak"] * (width + 4) / (4 * width)


def test_the_report_tells_graphs_their_seconds_and_how_busy_the_device_was(compiled_job):
    items, bucket, plain, _ = compiled_job
    report, eager = (each.read_json(layout.job_report(7)) for each in (bucket, plain))
    record = bucket.read_json(layout.record(items[0].key))["execution"]
    (start,) = report["starts"]
    assert start["compiled"]["graphs"] == record["graphs"] == report["compiled_graphs"]
    assert start["compiled"]["seconds"] == pytest.approx(record["compile_s"], abs=0.01)
    assert (eager["starts"][0]["compiled"], eager["compiled_graphs"]) == (None, 0)
    for each in (report, eager):
        busy = each["starts"][0]["device_busy"]
        assert busy["clips"] == 2
        assert 0 < busy["busy_s"] <= busy["window_s"]
        assert each["throughput"]["device_busy_share"] == pytest.approx(busy["busy_s"] / busy["window_s"], abs=1e-3)
    page = bucket.read(layout.job_report(7, "html")).decode()
    assert "device busy, clip to clip" in page
    assert f"{record['graphs']} graphs in" in page


def clock(*marks: float) -> DeviceClock:
    return DeviceClock(torch.device("cpu"), list(marks))


def test_busy_is_what_lies_between_marks_from_the_first_clip_s_end_without_compiling():
    use = DeviceUse()
    # Ends at 5; works 7..9 and 10..11 of 5..11; works 11..13 and 13..15, one second of it compiling.
    for denoise, decode, compile_s in (
        (clock(0.0, 4.0), clock(4.0, 5.0), 3.0),
        (clock(7.0, 8.0, 9.0), clock(10.0, 11.0), 0.0),
        (clock(11.0, 13.0), clock(13.0, 15.0), 1.0),
    ):
        use.clips.append(ClipOnDevice(denoise=denoise, decode=decode, compile_s=compile_s))
    use.close_window()
    assert (use.busy_s, use.window_s, use.gaps_s, use.clips) == (3.0 + 3.0, 10.0, [2.0, 0.0], [])
    use.clips.append(ClipOnDevice(denoise=clock(20.0, 21.0), decode=clock(21.0, 22.0), compile_s=0.0))
    use.close_window()
    assert use.facts() == {"share": 0.6, "busy_s": 6.0, "window_s": 10.0, "clips": 2, "gap_median_s": 1.0}
    assert DeviceUse().facts()["share"] is None


def test_frames_are_fetched_once_and_by_several_threads():
    pixels = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 4, 3)
    frames = ComingFrames(pixels, clock(1.0, 3.5))
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(frames.fetch())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each is found[0] for each in found)
    assert found[0].tolist() == pixels.tolist()
    assert frames.decode_s == 2.5


@pytest.mark.gpu
def test_frames_come_off_a_gpu_beside_what_was_queued_after_them():
    device = torch.device("cuda")
    pixels = torch.randint(0, 255, (4, 64, 64, 3), dtype=torch.uint8)
    on_device, work = pixels.to(device), torch.randn(8192, 8192, device=device)
    product = work @ work
    torch.cuda.Stream()  # the process's first one waits for all that is queued
    torch.cuda.synchronize()
    decode = DeviceClock(device)
    decode.mark()
    frames = ComingFrames(on_device, decode)
    decode.mark()
    for _ in range(200):
        product = work @ product
    queued = torch.cuda.Event()
    queued.record()
    start = time.perf_counter()
    assert (frames.fetch() == pixels.numpy()).all()
    assert not queued.query(), f"fetching waited for what was queued later ({time.perf_counter() - start:.3f} s)"
    torch.cuda.synchronize()


def test_settings_of_a_job_choose_cudnn_only_for_compiled_blocks_on_a_gpu():
    from pab.execution.choice import Execution, execution_of
    from pab.families import FAMILIES

    open_sora, wan, demo = (FAMILIES[name] for name in ("open_sora", "wan", "demo"))
    auto = {"compiled": True, "attention": "auto", "precision": "bfloat16"}
    fused = Execution(compiled=True, attention="cudnn", kernels=True, records=True)
    assert execution_of(open_sora, **auto, device="cuda") == fused
    assert execution_of(open_sora, **(auto | {"precision": "float32"}), device="cuda") == replace(
        fused, kernels=False, records=False
    )
    assert execution_of(open_sora, **auto, device="cpu") == Execution(compiled=True)
    assert execution_of(demo, **auto, device="cuda") == Execution(compiled=True)
    assert execution_of(wan, **auto, device="cuda") == Execution(compiled=True, kernels=True)
    assert execution_of(open_sora, **(auto | {"compiled": False}), device="cuda") == Execution()
    assert replace(Execution(), attention="cudnn").identity == " attention cudnn"
    assert fused.identity == " compiled attention cudnn kernels"
    assert Execution().identity == ""


def test_a_job_tells_its_model_to_use_the_kernels_where_its_execution_has_them():
    told: list[bool] = []
    family = replace(TINY, fused_kernels=True)
    plain = RenderSettings(precision="bfloat16", device="cpu", compile=True)
    for changes in ({"device": "cuda"}, {"device": "cpu"}, {"device": "cuda", "compile": False}):
        settings = JobSettings(
            output="unused", run_id="run-1", mesh=Mesh(), render=replace(plain, **changes), compile_backend="eager"
        )
        loaded = load_family(family, settings, torch.device("cpu"))
        told.append(loaded.model.transformer.choose_kernels is choice.fastest)
        assert loaded.execution.kernels == told[-1]
    assert told == [True, False, False]
